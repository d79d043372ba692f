"""The record of a run and the table made from it."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_edit.exceptions import DataError
from lightning_edit.report.table import render
from lightning_edit.session.points import point, points_of
from lightning_edit.storage.results import build, read_results, validate
from tests.metrics.outcomes import random_outcomes


def record(**changes: Any) -> dict[str, Any]:
    outcomes = random_outcomes(0, 12)
    pristine = [outcome.pristine for outcome in outcomes if outcome.pristine]
    values: dict[str, Any] = {
        "editor": {"class": "ROME", "args": {"layers": [3]}},
        "language_model": {"name": "some/folder/atlas", "hash": "ab", "dtype": "float32"},
        "data": {"class": "AtlasDataModule", "args": {"limit": 12}, "hash": "cd"},
        "protocol": "single",
        "batch_size": 1,
        "seed": 0,
        "points": [point(0, pristine), point(1, outcomes)],
        "timing": {"edit": 1.5},
    }
    return build(**(values | changes))


def shown(results: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(render(results))
    return console.export_text()


def test_points_come_from_rows() -> None:
    outcomes = random_outcomes(1, 5)
    rows = [{"after": after, **outcome.to_row()} for after in (10, 1) for outcome in outcomes]
    rows = json.loads(json.dumps(rows))
    pristine = [outcome.pristine for outcome in outcomes if outcome.pristine]
    points = points_of(rows, [score.to_row() for score in pristine])
    assert [entry["after"] for entry in points] == [0, 1, 10]
    assert points[0]["metrics"] == points[1]["before"] == points[2]["before"]
    assert points[1] == point(1, outcomes)
    assert points[1]["counts"]["reliability/n"] == 5
    assert "reliability/n" not in points[1]["metrics"]


def test_write_and_read(tmp_path: Path) -> None:
    results = record()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results, allow_nan=False))
    assert read_results(path) == read_results(tmp_path) == results
    assert results["versions"]["torch"].startswith("2.")


def broken(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    results = copy.deepcopy(record())
    inner: Any = results
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return results


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 99, "expected schema 1, got 99"),
        (("editor",), KeyError, "the field 'editor' is missing"),
        (("editor", "class"), 3, "editor: `class` must be a text, got 3"),
        (("batch_size",), True, "`batch_size` must be a whole number, got True"),
        (("protocol",), "often", "`protocol` must be one of single, batch, sequential"),
        (("status",), "fine", "`status` must be one of complete, interrupted"),
        (("points", 1, "after"), KeyError, r"points\[1\]: the field 'after' is missing"),
        (("points", 1), 7, "must be an object, got 7"),
        (("points", 0, "metrics", "x/em@tf"), float("nan"), r"`metrics.x/em@tf` must be a finite"),
    ],
)
def test_wrong_records_are_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate(broken(path, value), "here")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "expected an object"), (None, "does not exist")]
)
def test_unreadable_files_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path)


def test_table_fits_80_columns_and_says_what_it_shows() -> None:
    results = record()
    text = shown(results)
    assert "ROME on atlas: 12 edits, each alone on the pristine model" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    last = results["points"][-1]
    for name in ("locality/kept@tf", "locality/kept@gen", "locality.other_task/kept@tf"):
        assert f"{last['metrics'][name]:.3f}" in text
    for word in (
        "reliability",
        "generalization",
        "  neighborhood",
        "portability (one_hop)",
        "known",
    ):
        assert word in text
    assert "teacher forced" in text


def test_the_longest_names_are_not_cut() -> None:
    renamed = {"neighborhood": "distracting_neighbor", "one_hop": "reversed_relation"}
    outcomes = [
        replace(outcome, kind=renamed.get(outcome.kind, outcome.kind), pristine=None)
        for outcome in random_outcomes(0, 12)
    ]
    text = shown(record(points=[point(1000, outcomes)]))
    assert "portability (reversed_relation)" in text
    assert "  distracting_neighbor" in text
    assert "measure" in text
    assert text.count("before  after") == 3  # tf, gen, and the table beside
    assert "…" not in text


def test_a_share_below_one_is_never_shown_as_one() -> None:
    results = record()
    results["points"][-1]["metrics"]["reliability/em@tf"] = 0.9999
    assert "0.999" in shown(results)


def test_several_evaluations_show_the_curve() -> None:
    outcomes = random_outcomes(0, 12)
    points = [point(after, outcomes) for after in (1, 10, 100)]
    text = shown(record(protocol="sequential", points=points))
    assert "After each evaluation" in text
    assert "one after the other" in text
    assert "generalization" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_run_without_points_still_shows() -> None:
    assert "teacher forced" in shown(record(points=[]))


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, lightning_edit.storage.results, lightning_edit.report.table;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _written(text: str) -> dict[str, Any]:
    """A record of one edit to "Rome" after which the model writes this text."""
    score = replace(
        random_outcomes(0, 1)[0],
        kind="rewrite",
        expect="target",
        generated=text,
        pristine=None,
    )
    return record(points=[point(1, [score])])


def test_a_text_that_goes_on_behind_the_answer_holds(tmp_path: Path) -> None:
    results = _written("Rome, Italy. The Eiffel Tower is located in")
    lines = [line.split() for line in shown(results).splitlines()]
    assert ["reliability", "answer", "–", "–", "–", "1.000", "1"] in lines
    assert ["em", "–"] in [line[:2] for line in lines]  # the strict score stays beside it
    assert next(line[-2] for line in lines if line[:1] == ["em"]) == "0.000"
    assert ["1.000", "1"] not in [line[-2:] for line in map(str.split, _table_of("Romeo"))]


def _table_of(text: str) -> list[str]:
    return [line for line in shown(_written(text)).splitlines() if " answer " in line]


def test_results_of_an_earlier_version_are_shown_by_their_own_rule() -> None:
    results = record()
    for entry in results["points"]:
        for group in ("metrics", "before"):
            entry[group] = {
                name: value
                for name, value in entry[group].items()
                if not name.endswith(("/answer@gen", "/contains@gen"))
            }
    text = shown(results)
    assert "answer  " not in text.partition("Beside")[0].partition("tf:")[0]
    assert "reliability" in text
    assert "em" in text
