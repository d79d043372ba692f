"""Figures for papers, and the series that page and figures share."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from lightning_edit import report
from lightning_edit.exceptions import DataError
from lightning_edit.report.names import describe_metric
from lightning_edit.report.ripple import RippleFact, lay_out, read_ripples
from lightning_edit.report.runs import as_runs, comparable
from lightning_edit.report.series import aspects, batch_curves, metric_names, stage_seconds
from tests.report.runs import write_ripples, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    numbers = {
        "drift/hidden_cosine": lambda after: after / 100,
        "collapse/perplexity_median": lambda after: 10.0**after,
        "efficiency/search_seconds": lambda after: 0.5,
        "efficiency/evaluate_seconds": lambda after: 9.0,
    }
    made = [
        write_run(folder / name, 8, name, "sequential", after=[1, 4, 8], extra=numbers, seed=seed)
        for seed, name in enumerate(("ROME", "MEMIT"))
    ]
    write_ripples(made[0], ["edit:0", "edit:1"])
    return made


@pytest.mark.parametrize(
    "name",
    ["plot_aspects", "plot_curves", "plot_drift", "plot_efficiency", "plot_tradeoff"],
)
def test_figures_draw_every_run_and_embed_truetype_fonts(
    name: str, runs: list[Path], tmp_path: Path
) -> None:
    before = dict(mpl.rcParams)
    figure = getattr(report, name)(runs)
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    ticks = {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}
    assert {"ROME", "MEMIT"} <= labels | ticks
    assert figure._suptitle is None
    assert not any(axes.get_title() for axes in figure.axes)
    figure.savefig(tmp_path / "figure.pdf")
    data = (tmp_path / "figure.pdf").read_bytes()
    assert b"/Type3" not in data
    assert b"/TrueType" in data or b"/CIDFontType2" in data
    assert dict(mpl.rcParams) == before


def test_bars_have_the_values_of_the_record(runs: list[Path]) -> None:
    (run,) = as_runs(runs[0])
    figure = report.plot_aspects(runs[0])
    before, after = figure.axes[0].containers
    values = aspects(run, "gen")
    assert [bar.get_width() for bar in after] == [value.after for value in values]
    known = [value.before for value in values if value.before is not None]
    assert [bar.get_width() for bar in before] == known
    assert len(known) < len(values)  # `kept` is not defined before the edit


def test_ripples_around_an_edit(runs: list[Path]) -> None:
    assert report.plot_ripple(runs[0], "edit:1").axes
    with pytest.raises(DataError, match="there are: edit:0, edit:1"):
        report.plot_ripple(runs[0], "edit:7")
    with pytest.raises(DataError, match="no ripples"):
        report.plot_ripple(runs[1])


def test_figures_say_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("plot_curves", "plot_drift"):
        with pytest.raises(DataError, match="the runs have no"):
            getattr(report, name)(run)
    with pytest.raises(ValueError, match="`over` must be one of sequence, batch"):
        report.plot_curves(run, over="time")


def test_curves_over_the_batch_need_two_sizes(tmp_path: Path) -> None:
    made = [write_run(tmp_path / str(n), n, "MEMIT", "batch") for n in (8, 2)]
    (line,) = batch_curves(as_runs(made), "reliability/em@gen")
    assert line.label == "MEMIT"
    assert line.x == (2, 8)
    assert batch_curves(as_runs(made[:1]), "reliability/em@gen") == []
    assert report.plot_curves(made, over="batch").axes


def test_runs_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, 2, "ROME") for name in ("a", "b")]
    assert [run.label for run in as_runs(folders)] == ["ROME (a)", "ROME (b)"]
    assert [run.label for run in as_runs([folders[0], folders[0]])] == ["ROME (1)", "ROME (2)"]
    other = write_run(tmp_path / "c", 2, "ROME", "batch")
    labels = [run.label for run in as_runs([folders[0], other])]
    assert labels == ["ROME, single", "ROME, batch"]
    assert comparable(as_runs([folders[0], other])) == ["protocol"]


def test_scoring_is_no_part_of_an_edit(runs: list[Path]) -> None:
    (run,) = as_runs(runs[0])
    assert stage_seconds(run) == {"search": 0.5}
    assert metric_names([run], "drift") == ["drift/hidden_cosine"]


def fact(number: int, distance: int | None, change: float = 0.0) -> RippleFact:
    triple = (f"s{number}", "r", f"o{number}")
    return RippleFact("e", triple, f"p{number}", distance, None, "", change, True, True)


def test_rings_are_distances() -> None:
    graph = lay_out([fact(0, 1), fact(1, 1), fact(2, 3), fact(3, None)])
    radii = [(node.x**2 + node.y**2) ** 0.5 for node in graph.nodes]
    assert graph.nodes[0].fact is None
    assert radii == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert [label for label, _ in graph.rings] == ["1 step", "3 steps", "no path"]
    assert [radius for _, radius in graph.rings] == pytest.approx([1 / 3, 2 / 3, 1])
    assert graph.links == ((0, 1), (0, 2))


def test_near_facts_and_large_changes_are_drawn_first() -> None:
    graph = lay_out([fact(0, 2, 9.0), fact(1, 1, 0.1), fact(2, 1, -3.0), fact(3, 1, 1.0)], limit=2)
    assert [kept.prompt for kept in graph.facts] == ["p2", "p3"]
    assert graph.left_out == 2


def test_the_last_measurement_of_a_fact_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_ripples(run, ["e"], facts=5, seed=0)
    first = (run / "ripple.jsonl").read_text()
    write_ripples(run, ["e"], facts=5, seed=1)
    wanted = read_ripples(run)["e"]
    (run / "ripple.jsonl").write_text(first + (run / "ripple.jsonl").read_text())
    assert read_ripples(run)["e"] == wanted
    (run / "ripple.jsonl").write_text('{"edit_id": "e"}\n')
    with pytest.raises(DataError, match=r"ripple.jsonl, line 1: not a fact"):
        read_ripples(run)


@pytest.mark.parametrize(
    ("name", "title", "share"),
    [
        ("drift.reliability/retention@gen", "Earlier edits that still hold, reliability", True),
        ("collapse/ngram_entropy", "Variety of what it writes", False),
        ("overfitting/subject_only/leak@tf", "The new answer where it is wrong, subject", True),
        ("somebody/elses_number", "Elses number", False),
    ],
)
def test_numbers_have_words(name: str, title: str, share: bool) -> None:
    about = describe_metric(name)
    assert about.title.startswith(title)
    assert about.share is share
    assert about.leading


def test_a_change_since_the_first_edit_is_no_share() -> None:
    assert not describe_metric("drift.locality/em@tf").share
    assert not describe_metric("drift.trend/drift/l1_growth").leading


def test_importing_the_report_loads_no_plotting_library() -> None:
    code = (
        "import sys, lightning_edit.report, lightning_edit.report.page, lightning_edit.cli.report;"
        "sys.exit(bool({'torch', 'bokeh', 'matplotlib', 'networkx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
