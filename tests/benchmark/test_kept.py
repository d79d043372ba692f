"""Measured cells as files for version control: they count as done elsewhere, and stay equal."""

import gzip
import json
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.benchmark.folders import CellFolder
from lightning_edit.benchmark.grid import Cell
from lightning_edit.benchmark.kept import keep, restore
from lightning_edit.benchmark.outcomes import read_outcomes
from lightning_edit.exceptions import DataError

SCORES = {"points": {"1": {"a": {"reliability/em@tf": 1.0}}}, "timing": {"edits": 1.0}}


def cell(lr: float = 0.1, *, memory: bool = False) -> Cell:
    return Cell("atlas", "facts", "single", "FTM", 0, {"editor": {"lr": lr}}, memory=memory)


def measured(out: Path, one: Cell) -> None:
    folder = CellFolder(out, one)
    folder.path.mkdir(parents=True)
    folder.write_json(folder.scores, SCORES)
    if one.memory:
        folder.write_json(folder.memory, {"peak_bytes": 5.0})


@pytest.mark.parametrize("memory", [False, True])
def test_a_kept_cell_is_done_elsewhere_with_the_same_scores(tmp_path: Path, memory: bool) -> None:
    here, there, kept = tmp_path / "here", tmp_path / "there", tmp_path / "kept"
    one = cell(memory=memory)
    assert keep(one, here, kept) is None
    measured(here, one)
    path = keep(one, here, kept)
    assert path is not None
    before = path.read_bytes()
    assert restore([one, cell(0.2)], there, kept) == 1
    assert CellFolder(there, one).status == "done"
    assert CellFolder(there, cell(0.2)).status == "open"  # other settings are another cell
    assert read_outcomes([one], there) == read_outcomes([one], here)
    assert restore([one], there, kept) == 0
    keep(one, there, kept)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"[1]"), gzip.compress(b"{")],
    ids=["no gzip", "a list", "cut JSON"],  # the bytes hold the second in which they were made
)
def test_a_damaged_file_is_named_and_nothing_is_taken(tmp_path: Path, content: bytes) -> None:
    one, kept = cell(), tmp_path / "kept"
    kept.mkdir()
    (kept / f"{one.name}.json.gz").write_bytes(content)
    with pytest.raises(DataError, match=one.name):
        restore([one], tmp_path / "out", kept)
    assert CellFolder(tmp_path / "out", one).status == "open"


def test_the_command_runs_only_what_was_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "small.yaml"
    grid.write_text(
        "title: Small\nmodels: {atlas: {lm: atlas}}\ndata: {facts: {class_path: AtlasDataModule}}\n"
        "protocols: {pair: {protocol: batch, edits: 2}}\nmodes: [tf]\n"
        "columns: [[reliability/em@tf]]\ntrainer: {accelerator: cpu}\n"
        "methods: {FTM: {class_path: FTM, init_args: {lr: 0.005, steps: 2}}}\n"
    )
    kept = tmp_path / "kept"
    first = ["benchmark", str(grid), "--kept", str(kept), "--out", str(tmp_path / "one")]
    assert main(first) == 0
    (path,) = kept.iterdir()
    assert json.loads(gzip.decompress(path.read_bytes()))["scores"]["points"]["2"]
    capsys.readouterr()
    assert main([*first[:-1], str(tmp_path / "two")]) == 0
    assert "1 done" in capsys.readouterr().out
    assert not (tmp_path / "two" / "baselines").exists()  # nothing ran
    tables = [(tmp_path / name / "tables.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
