"""Sequences on the page: small charts of what moves, a sentence on what does not, counters."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_edit import report
from lightning_edit.exceptions import DataError
from lightning_edit.functional.bootstrap import cluster_mean, wilson
from lightning_edit.report.flat import flat_sentence, is_flat
from lightning_edit.report.names import MetricInfo, describe_metric
from lightning_edit.report.page import write_page
from lightning_edit.report.payload import unpack
from lightning_edit.report.ripple import RippleFact, read_ripples
from lightning_edit.report.ripple_series import change_over_distance, harmed_facts
from lightning_edit.report.runs import as_runs
from lightning_edit.report.sections import sections
from lightning_edit.report.series import Curve
from tests.report.runs import write_ripples, write_run

NUMBERS: dict[str, Any] = {
    "drift.reliability/retention@gen": lambda after: 1 - after / 100,
    "drift/update_norm": lambda after: 0.01 * after,
    "drift/l2_growth": lambda after: 1.0 + 1e-7 * after,
    "collapse/perplexity_median": lambda after: 10.0 + after,
    "collapse/perplexity_ratio": lambda after: (10.0 + after) / 10,
    "collapse/rolled_back": float,
    "collapse/first_broken": lambda after: 5.0,
    "collapse/checks": float,
    "overfitting.subject_only/leak@tf": lambda after: 0.25,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = [
        write_run(folder / name, 20, name, "sequential", after=[1, 5, 20], extra=NUMBERS, seed=seed)
        for seed, name in enumerate(("ROME", "MEMIT"))
    ]
    write_ripples(made[0], ["edit:0", "edit:1", "edit:2"])
    return made


def drawn(runs: list[Path]) -> dict[str, Any]:
    return {section.id: section for section in sections(as_runs(runs), [{}] * len(runs))}


def test_what_moves_is_drawn_and_what_does_not_is_told(runs: list[Path]) -> None:
    drift = drawn(runs[:1])["drift"]
    (card,) = drift.multiples
    titles = [chart.title for chart in card.charts]
    assert "Perplexity on held text, over that before" in titles
    assert "Size of all edits" in titles
    assert not any("Growth" in title or "taken back" in title for title in titles)
    assert card.flat == "Unchanged throughout: growth of the weights (1)."
    numbers = {number.title: dict(number.values) for number in drift.numbers}
    assert numbers["Edits taken back"] == {"ROME": "20"}
    assert numbers["Perplexity beyond its bound, first after"] == {"ROME": "5 edits"}
    assert "Checks of the guard" not in {*titles, *numbers}
    (leaks,) = drawn(runs[:1])["leaks"].multiples
    assert leaks.charts == ()
    assert "(25%)" in leaks.flat


def test_flat_series_keep_their_numbers(runs: list[Path]) -> None:
    (card,) = drawn(runs[:1])["drift"].multiples
    told = [row for row in card.rows if row[0] == "Growth of the weights"]
    assert [row[2] for row in told] == ["0", "1", "5", "20"]  # it is 1 before any edit


def test_perplexity_begins_with_one(runs: list[Path]) -> None:
    figure = report.plot_drift(runs, ["perplexity_ratio"])
    (axes,) = [axes for axes in figure.axes if axes.get_visible()]
    for line in axes.get_lines():
        assert list(line.get_xdata()) == [0, 1, 5, 20]
        assert list(line.get_ydata()) == pytest.approx([1.0, 1.1, 1.5, 3.0])


def test_several_runs_share_one_legend_and_the_page_draws_every_small_chart(
    runs: list[Path], tmp_path: Path
) -> None:
    (card,) = drawn(runs)["curves"].multiples
    assert [mark.name for mark in card.legend] == ["ROME", "MEMIT"]
    html = write_page(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    section = html.partition('id="curves-title"')[2].partition("</section>")[0]
    assert section.count('class="legend"') == 1
    assert section.count('class="small"') == len(card.charts) > 2
    data = re.search(r'id="charts-data">([^<]*)<', html)
    assert data is not None
    charts = unpack(data[1])["charts"]
    named = set(re.findall(r'data-chart="([^"]+)"', html))
    assert {chart.id for chart in card.charts} <= named == set(charts)


def test_a_step_that_a_reader_could_see_is_not_flat() -> None:
    share = MetricInfo("Right", share=True)
    assert is_flat(share, [Curve("a", (1, 2), (0.951, 0.952))])
    assert not is_flat(share, [Curve("a", (1, 2), (0.95, 0.97))])
    assert not is_flat(share, [Curve("a", (1, 2), (0.999, 1.0))])  # one that failed is told
    assert not is_flat(MetricInfo("Norm"), [Curve("a", (1, 2), (1e-6, 2e-6))])


def test_flat_values_of_several_runs_are_told_apart() -> None:
    share = MetricInfo("ES, efficacy", share=True)
    lines = [Curve("ROME", (1, 2), (1.0, 1.0)), Curve("MEMIT", (1, 2), (0.5, 0.5))]
    assert flat_sentence([(share, lines)]) == (
        "Unchanged throughout: ES, efficacy (ROME 100%, MEMIT 50%)."
    )
    assert flat_sentence([]) == ""


def test_panels_are_chosen_by_name_family_or_measure(runs: list[Path]) -> None:
    def titles(*names: str) -> list[str]:
        axes = report.plot_drift(runs, names).axes
        return [one.get_ylabel().replace("\n", " ") for one in axes if one.get_visible()]

    assert titles("update_norm", "collapse/perplexity_ratio") == [
        "Size of all edits",
        "Perplexity on held text, over that before",
    ]
    assert len(titles("collapse")) == 2  # median and ratio; counters are not drawn
    assert not any("taken back" in title for title in titles())
    with pytest.raises(DataError, match=r"got 'perplexty'; there are: drift.reliability/retention"):
        report.plot_drift(runs, ["perplexty"])


def test_rings_bear_their_names(runs: list[Path]) -> None:
    axes = report.plot_ripple(runs[0], "edit:0").axes[0]
    named = {text.get_text(): text.get_position() for text in axes.texts}
    assert list(named) == ["1 step", "2 steps", "3 steps", "4 steps", "no path"]
    radii = sorted(patch.get_radius() for patch in axes.patches)  # type: ignore[attr-defined]
    assert sorted(y for _, y in named.values()) == pytest.approx(radii)


def fact(edit: str, number: int, distance: int, change: float) -> RippleFact:
    triple = (f"s{number}", "r", f"o{number}")
    return RippleFact(edit, triple, "p", distance, None, "near", change, True, True)


def test_facts_of_one_edit_say_less_than_facts_of_many() -> None:
    together = {
        edit: [fact(edit, n, at, float(edit)) for n in range(10) for at in (1, 2)]
        for edit in ("0", "4")
    }
    apart = {str(n): [fact(str(n), n, at, 4.0 * (n % 2)) for at in (1, 2)] for n in range(20)}
    first, second = (change_over_distance("run", found) for found in (together, apart))
    assert first is not None
    assert second is not None
    assert first.y == second.y == (2.0, 2.0)
    assert first.n == second.n == (20, 20)
    (low, high), (inner_low, inner_high) = first.intervals[0], second.intervals[0]
    assert (low, high) == (0.0, 4.0)  # of two edits, one may be drawn twice
    assert 0.8 < inner_low < 2 < inner_high < 3.2
    assert change_over_distance("run", {"0": [fact("0", 1, 1, 1.0)]}) is None


def test_the_cluster_bootstrap_of_single_values_is_the_plain_one() -> None:
    values = [float(n % 5) for n in range(200)]
    mean = cluster_mean([[value] for value in values])
    assert mean.half == pytest.approx(1.96 * 2**0.5 / 200**0.5, rel=0.08)
    assert cluster_mean([values]) == mean


def test_harmed_facts_have_their_number_and_interval(runs: list[Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4, protocol="batch")
    results = json.loads((run / "results.json").read_text())
    results["points"][-1]["metrics"] |= {"ripple.near/beyond@tf": 0.25, "ripple.near/facts": 40.0}
    (run / "results.json").write_text(json.dumps(results))
    write_ripples(run, ["edit:0", "edit:1"])
    (read,) = as_runs(run)
    (near,) = harmed_facts(read, {"near": "close"})
    assert (near.n, near.interval) == (40, wilson(0.25, 40))
    found = {s.id: s for s in sections([read], [read_ripples(run)])}["ripple"]
    charts = {chart.id: chart for chart in found.charts}
    assert charts["ripple-harmed"].header[-2:] == ("95 % interval", "facts")
    assert charts["ripple-harmed"].rows[0][2:] == ("25.0%", "14.2% to 40.2%", "40")
    assert charts["ripple-distance"].header[-2:] == ("95 % interval", "n")
    counts = [int(row[-1]) for row in charts["ripple-distance"].rows]
    assert sum(counts) == 2 * 28  # two of thirty facts have no path


@pytest.mark.parametrize(
    "name", ["collapse/rolled_back", "collapse/first_broken", "collapse/checks"]
)
def test_counters_are_known(name: str) -> None:
    assert describe_metric(name).counter
