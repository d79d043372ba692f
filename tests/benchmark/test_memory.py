"""Peak memory of a cell's edits."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.folders import CellFolder
from lightning_edit.benchmark.grid import Cell
from lightning_edit.benchmark.memory import measure_in_own_process, peak_added_by
from lightning_edit.benchmark.outcomes import read_outcomes
from lightning_edit.exceptions import LightningEditError

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")


@pytest.mark.slow
@linux
def test_what_is_freed_within_the_work_counts_and_what_was_freed_before_does_not() -> None:
    def take(size: int) -> None:
        torch.ones(size * MIB // 4).sum()

    take(256)  # its pages go back before the next reading
    for size in (64, 128, 32):
        added = peak_added_by(lambda size=size: take(size))  # type: ignore[misc]  # a default
        assert added is not None
        assert (size - 1) * MIB <= added < (size + 24) * MIB  # Linux counts by some pages
    kept = peak_added_by(lambda: [torch.ones(16 * MIB // 4) for _ in range(4)])
    assert kept is not None
    assert kept >= 63 * MIB


def test_a_cell_is_done_once_its_memory_is_measured(tmp_path: Path) -> None:
    spec = {"protocol": {"protocol": "single"}, "data": {}}
    plain = Cell("tiny", "facts", "ten", "FT", 0, spec)
    asked = Cell("tiny", "facts", "ten", "FT", 0, spec, memory=True)
    assert asked.name == plain.name
    folder = CellFolder(tmp_path, asked)
    found = {"points": {"1": {"a": {}}}, "timing": {"edit_seconds": 2.0, "edits": 10}}
    folder.write_json(folder.scores, found)
    assert CellFolder(tmp_path, plain).status == "done"
    folder.ledger.mkdir(parents=True)
    (folder.ledger / "journal.jsonl").write_text("{}\n", encoding="utf-8")
    assert folder.status == "started"
    assert read_outcomes([asked], tmp_path)[0].time("seconds") == 2.0
    folder.write_json(folder.memory, {"peak_bytes": 5_000_000, "edits": 10})
    (outcome,) = read_outcomes([asked], tmp_path)
    assert outcome.status == "done"
    assert outcome.time("peak_mb") == 5.0
    assert Column("peak_mb").is_time
    folder.write_json(folder.memory, {"peak_bytes": None, "edits": 10})
    assert read_outcomes([asked], tmp_path)[0].time("peak_mb") is None


@linux
@pytest.mark.slow
def test_a_method_of_many_copies_takes_more_than_one_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning of a block copies its weights, and keeps a gradient and two moments of each."""
    (tmp_path / "lightning_edit").mkdir()  # another package of the name, in the current folder
    (tmp_path / "lightning_edit" / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    peaks = []
    for layers in ([3], [0, 1, 2, 3, 4]):
        spec = {
            "lm": {"lm": "atlas"},
            "data": {"class_path": "AtlasDataModule", "init_args": {"limit": 4}},
            "editor": {"class_path": "FTM", "init_args": {"layers": layers, "steps": 3}},
            "protocol": {"protocol": "single", "batch_size": 1},
            "modes": ["tf"],
            "seed": 0,
        }
        path = tmp_path / "cell.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        found = measure_in_own_process(path)
        assert found["edits"] == 4
        peaks.append(found["peak_bytes"])
    assert peaks[1] > peaks[0] > 0
    path.write_text(json.dumps({**spec, "data": {"class_path": "Nothing"}}), encoding="utf-8")
    with pytest.raises(LightningEditError, match="peak memory of"):
        measure_in_own_process(path)
