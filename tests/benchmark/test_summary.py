"""A benchmark's summary over protocols, its figure and its page."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lightning_edit.__main__ import main
from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.curves import curves
from lightning_edit.benchmark.grid import Cell, Grid
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.benchmark.overview import panel_of
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.benchmark.summary import summaries_of
from lightning_edit.exceptions import ConfigError
from lightning_edit.report.grid_page import write_grid_page
from lightning_edit.report.overview_plot import plot_overview
from lightning_edit.report.panels import Panel, ground, ink

RIGHT, KEPT = "reliability/answer@gen", "locality/kept@tf"


def outcome(method: str, protocol: str, values: Mapping[int, list[float]]) -> CellOutcome:
    """Return a finished cell, or an open one: by evaluation point, the score of each request."""
    cell = Cell("tiny", "facts", protocol, method, 0, {"protocol": {"protocol": protocol}})
    points = {
        after: {str(n): {RIGHT: value, KEPT: 1 - value} for n, value in enumerate(listed)}
        for after, listed in values.items()
    }
    if not values:
        return CellOutcome(cell, "open", "")
    timing = {"edit_seconds": 3.0, "edits": 10}
    return CellOutcome(cell, "done", "", {0: points[max(points)], **points}, timing)


def grid(*summary: tuple[str, str]) -> Grid:
    return Grid(Path("g.yaml"), "G", "", (), {}, (), (), (), {}, summary)


OUTCOMES = [
    outcome("ROME", "single", {1: [1.0, 1.0, 1.0, 1.0]}),
    outcome("ROME", "stream", {1: [1.0], 4: [1.0, 0.0, 0.0, 0.0]}),
    outcome("KN", "single", {1: [0.0, 0.0, 1.0, 0.0]}),
    outcome("KN", "stream", {}),
    outcome("MEND", "single", {}),
    outcome("MEND", "stream", {}),
]
SUMMARY = (("single", RIGHT), ("stream", RIGHT), ("stream", KEPT), ("single", "seconds"))


def test_a_summary_has_the_last_point_of_every_protocol() -> None:
    (table,) = summaries_of(grid(*SUMMARY), OUTCOMES)
    found = {
        line.label: [None if v is None else v.mean.value for v in line.values]
        for line in table.lines
    }
    assert found == {
        "ROME": [1.0, 0.25, 0.75, 3.0],
        "KN": [0.25, None, None, 3.0],
        "MEND": [None] * 4,
    }
    assert [line.reason for line in table.lines] == ["", "", "not run"]
    assert [heads[0] for heads in table.heads] == ["single", "stream", "stream", "single"]
    assert table.notes == ("n = 4 requests.",)
    assert summaries_of(grid(), OUTCOMES) == []


def test_a_time_is_text_without_colour_and_each_share_says_its_interval() -> None:
    (table,) = summaries_of(grid(*SUMMARY), OUTCOMES)
    panel = panel_of(table)
    assert panel.values[0] == (1.0, 0.25, 0.75, None)
    assert panel.texts[0][3] == "3"
    assert re.fullmatch(r"25 ±\d+", panel.texts[0][1])
    assert panel.rows == ("ROME", "KN", "MEND (not run)")
    axes = plot_overview([panel]).axes[0]
    assert axes.get_xlabel() == "n = 4 requests."
    assert [text.get_text() for text in axes.texts] == [t for row in panel.texts for t in row]


def test_a_curve_has_one_column_for_each_number_of_edits() -> None:
    """Two streams pass the same points, and requests alone are no curve."""
    spec = {"protocol": {"protocol": "sequential"}, "data": {}}
    short, long = outcome("ROME", "stream", {1: [1.0], 2: [1.0, 0.0]}), outcome("KN", "long", {})
    reached = outcome("KN", "long", {1: [0.0], 2: [0.0, 0.0], 4: [0.0, 0.0, 0.0, 1.0]})
    found = [
        replace(one, cell=replace(one.cell, spec=spec))
        for one in (short, replace(reached, cell=long.cell))
    ]
    found += [outcome("ROME", "single", {1: [1.0]}), outcome("ROME", "ten", {1: [1.0]})]
    (table,) = curves(grid(), found, Column(RIGHT))
    assert [heads[1] for heads in table.heads] == ["1", "2", "4"]
    assert {
        line.label: [None if v is None else v.mean.value for v in line.values]
        for line in table.lines
    } == {"ROME": [1.0, 0.5, None], "KN": [0.0, 0.0, 0.25]}


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_scale_rises_evenly_in_grey_and_figures_on_it_are_readable() -> None:
    shares = [number / 100 for number in range(101)]
    bright = [luminance(ground(share)) for share in shares]
    assert all(low < high for low, high in pairwise(bright))
    for share, here in zip(shares, bright, strict=True):
        low, high = sorted((here, luminance(ink(share))))
        assert (high + 0.05) / (low + 0.05) > 4.4, share
    assert ground(-1.0) == ground(0.0)
    assert ground(2.0) == ground(1.0)


class Cells(HTMLParser):
    """The cells of a page's tables, the text of each; and whatever could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)
        if tag in ("td", "th"):
            self.inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def test_the_page_says_every_figure_escapes_names_and_loads_nothing(tmp_path: Path) -> None:
    (table,) = summaries_of(grid(*SUMMARY), OUTCOMES)
    panel = replace(panel_of(table), rows=("<b>ROME", "KN", "MEND"))
    path = write_grid_page("G & H", ["A note."], [panel], [panel], tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    page = Cells()
    page.feed(text)
    assert page.loads == []
    assert "url(" not in text
    assert "<b>" not in text
    assert "G &amp; H" in text
    cells = [" ".join(cell.split()) for cell in page.cells]
    for row, texts in zip(panel.rows, panel.texts, strict=True):
        begin = cells.index(row)
        assert tuple(cells[begin + 1 : begin + 5]) == texts
    assert f"background:{ground(0.25)};color:{ink(0.25)}" in text


def test_a_summary_of_unknown_protocols_or_without_a_list_is_refused(tmp_path: Path) -> None:
    content = {
        "models": {"tiny": {"lm": "atlas"}},
        "data": {"facts": {"class_path": "AtlasDataModule"}},
        "protocols": {"single": {"protocol": "single"}},
        "methods": {"FT": {"class_path": "FT"}},
    }
    path = tmp_path / "grid.yaml"

    def read(summary: object) -> Grid:
        path.write_text(yaml.safe_dump(content | {"summary": summary}), encoding="utf-8")
        return read_grid(path)

    made = read({"single": [RIGHT, "seconds"]})
    assert made.summary == (("single", RIGHT), ("single", "seconds"))
    assert made.cells[0].digest == read_grid(path).cells[0].digest
    with pytest.raises(ConfigError, match="summary: 'stream' is not known; known: single"):
        read({"stream": [RIGHT]})
    with pytest.raises(ConfigError, match="expected protocols and, under each, a list"):
        read({"single": RIGHT})


def test_a_panel_without_a_score_is_no_score() -> None:
    assert not Panel("t", ("a",), ("r",), ((None,),), (("–",),)).has_scores


def test_report_shows_a_benchmarks_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cells").mkdir()
    assert main(["report", str(tmp_path)]) == 2
    assert "folder of a benchmark without tables" in capsys.readouterr().err
    (tmp_path / "tables.txt").write_text("ROME 100\n", encoding="utf-8")
    (tmp_path / "page.html").write_text("<p>ROME", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ROME 100" in shown
    assert str(tmp_path / "page.html") in shown
    copy = tmp_path / "copy.html"
    assert main(["report", str(tmp_path), "--html", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == "<p>ROME"
