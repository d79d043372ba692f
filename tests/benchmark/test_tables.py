"""Spreads against theory, what is marked as best, and the four formats."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_edit.benchmark.formats import escape_latex, write
from lightning_edit.benchmark.grid import Cell, ColumnGroup, Grid, Published
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.benchmark.overview import first_tables, panel_of
from lightning_edit.benchmark.table import Table
from lightning_edit.benchmark.tables import tables_of
from lightning_edit.exceptions import DataError
from lightning_edit.functional.bootstrap import Resampling
from lightning_edit.report.overview_plot import plot_overview

EM = "reliability/em@tf"


def outcome(
    method: str, values: list[float], seed: int = 0, status: str = "done", reason: str = ""
) -> CellOutcome:
    spec = {"protocol": {"protocol": "batch"}, "data": {}}
    cell = Cell("tiny", "facts", "batch", method, seed, spec)
    requests: dict[str, Mapping[str, float]] = {
        str(number): {EM: value} for number, value in enumerate(values)
    }
    points = {0: {name: {EM: 0.0} for name in requests}, len(values): requests}
    timing = {"edit_seconds": 2.0, "edit_cpu_seconds": 1.5, "edits": len(values)}
    if status != "done":
        return CellOutcome(cell, status, reason)  # type: ignore[arg-type]  # one of Status
    return CellOutcome(cell, "done", "", points, timing)


def grid(*published: Published) -> Grid:
    return Grid(Path("g.yaml"), "G", "", (), {}, (), (), published, {})


def table(*outcomes: CellOutcome, published: tuple[Published, ...] = ()) -> Table:
    (made,) = tables_of(grid(*published), outcomes)
    return made


def best(made: Table) -> list[str]:
    return [line.label for line in made.lines if line.values[0] and line.values[0].best]


def test_times_are_per_edit_of_the_wall_or_of_the_processor() -> None:
    done = outcome("ROME", [1.0] * 4)
    assert done.time("seconds_per_edit") == 0.5
    assert done.time("cpu_per_edit") == 0.375
    assert done.time("seconds") == 2.0
    older = replace(done, timing={"edit_seconds": 2.0, "edits": 4})
    assert older.time("cpu_per_edit") is None
    assert outcome("ROME", [], status="open").time("cpu_per_edit") is None


def test_an_interval_is_what_theory_says() -> None:
    values = np.random.default_rng(1).normal(size=(1, 400))
    mean = Resampling(400).mean(values)
    assert mean is not None
    assert mean.half == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert mean.low < mean.value < mean.high


def test_seeds_widen_the_interval() -> None:
    requests = np.random.default_rng(1).normal(size=(1, 50))
    seeds = requests + np.array([[-1.0], [0.0], [1.0]])
    one, several = Resampling(50).mean(requests), Resampling(50, 3).mean(seeds)
    assert one is not None
    assert several is not None
    assert several.half > 1.5 * one.half


def test_missing_values_count_neither_way() -> None:
    values = np.array([[1.0, np.nan, 1.0, np.nan]])
    mean = Resampling(4).mean(values)
    assert mean is not None
    assert (mean.value, mean.low, mean.n) == (1.0, pytest.approx(0.342, abs=1e-3), 2)
    assert Resampling(4).mean(np.full((1, 4), np.nan)) is None


def test_a_small_difference_on_every_request_is_one() -> None:
    hard = np.random.default_rng(1).normal(size=(1, 100))
    resampling = Resampling(100)
    assert resampling.differ(hard + 0.01, hard)
    assert not resampling.differ(hard, hard)
    # The same means on other requests: within the spread.
    assert not resampling.differ(hard + 0.01, hard[:, ::-1])


def test_best_is_marked_only_where_the_difference_exceeds_the_spread() -> None:
    assert best(table(outcome("A", [1.0] * 50), outcome("B", [1.0] * 20 + [0.0] * 30))) == ["A"]
    assert best(table(outcome("A", [1.0] * 50), outcome("B", [1.0] * 49 + [0.0]))) == []
    assert best(table(outcome("A", [1.0] * 50), outcome("B", [1.0] * 50))) == []


def test_what_failed_is_shown_with_its_reason() -> None:
    made = table(outcome("A", [1.0, 0.0]), outcome("B", [], status="failed", reason="Oh: no"))
    assert [line.label for line in made.lines] == ["before editing", "A", "B"]
    assert made.lines[-1].reason == "failed"
    assert made.notes == ("B failed: Oh: no", "n = 2 requests. Seed 0.")
    written = write([made], "text", 80, 1, grid())
    assert "Oh: no" in written


def test_each_alone_is_scored_after_one_edit() -> None:
    spec = {"protocol": {"protocol": "single"}, "data": {"init_args": {"limit": 100}}}
    cell = Cell("tiny", "facts", "single", "A", 0, spec)
    points = {0: {"x": {EM: 0.0}}, 1: {"x": {EM: 1.0}, "y": {EM: 1.0}}}
    done = CellOutcome(cell, "done", "", points, {"edit_seconds": 1.0, "edits": 2})
    line = table(done, CellOutcome(replace(cell, method="B"), "open")).lines[1]
    assert line.values[0] is not None
    assert line.values[0].mean.n == 2


def test_published_figures_stand_apart_with_their_conditions() -> None:
    theirs = Published("tiny", "facts", "batch", "Paper", "p. 1", "GPT-J.", {"A": {EM: 12.5}})
    made = table(outcome("A", [1.0]), published=(theirs,))
    line = made.lines[-1]
    assert (line.label, line.source) == ("A, Paper", "published")
    assert line.values[0] is not None
    assert line.values[0].mean.value == 0.125
    assert made.notes[-1] == "Paper: GPT-J. Source: p. 1"


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_the_terminal(width: int) -> None:
    made = table(*(outcome(f"Method{number}", [1.0, 0.0]) for number in range(3)))
    lines = write([made], "text", width, 1, grid()).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_csv_keeps_every_number_and_every_failure() -> None:
    made = table(outcome("A", [1.0, 0.0]), outcome("B", [], status="failed", reason="Oh: no"))
    rows = list(csv.DictReader(io.StringIO(write([made], "csv", 80, 1, grid()))))
    (one,) = [row for row in rows if row["method"] == "A" and row["column"] == EM]
    assert (float(one["value"]), one["n"], one["protocol"]) == (0.5, "2", "batch")
    assert {row["reason"] for row in rows if row["method"] == "B"} == {"failed"}


def test_signs_that_formats_read_otherwise_are_escaped() -> None:
    assert escape_latex("a_b & 5 % \\x") == r"a\_b \& 5 \% \textbackslash{}x"
    made = table(outcome("A_b|c", [1.0, 1.0]), outcome("D", [0.0, 0.0]))
    assert r"A\_b\|c" in write([made], "markdown", 80, 1, grid())
    latex = write([made], "latex", 80, 1, grid())
    assert r"\textbf{100$\pm$33}" in latex
    assert r"A\_b|c" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_the_overview_has_a_panel_for_each_place_and_a_cell_for_each_share() -> None:
    shown = replace(grid(), columns=(ColumnGroup((EM, "reliability/nll@tf", "seconds")),))
    outcomes = [
        outcome("ROME", [1.0, 1.0, 0.0, 1.0]),
        outcome("KN", [0.0, 0.0, 0.0, 0.0]),
        outcome("MEND", [], status="absent", reason="not trained"),
    ]
    (panel,) = [panel_of(t, shares_only=True) for t in first_tables(tables_of(shown, outcomes))]
    assert panel.title == "tiny · facts · batch"
    assert len(panel.heads) == 1
    assert panel.rows == ("ROME", "KN")
    assert panel.values == ((0.75,), (0.0,))
    figure = plot_overview([panel, panel])
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words[0].startswith("75 ±")
    assert len(words) == 4
    assert [axes.get_xlabel() for axes in figure.axes] == ["n = 4 requests. Seed 0."] * 2
    with pytest.raises(DataError, match="run the grid first"):
        plot_overview([replace(panel, values=((None,), (None,)))])
