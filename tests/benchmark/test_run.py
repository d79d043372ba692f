"""A grid runs cell by cell: failures are kept, a killed run goes on, shards are the whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.inference.onednn import large_layers
from lightning_edit.models.loading import load_language_model

GRID = """
title: Small
models: {atlas: {lm: atlas}}
data: {facts: {class_path: AtlasDataModule}}
protocols:
  pair: {protocol: batch, edits: 2}
  row: {protocol: sequential, batch_size: 1, edits: 4, eval_at: [1, end]}
modes: [tf]
columns: [[reliability/em@tf, locality/kept@tf, seconds]]
curves: [reliability/em@tf]
trainer: {accelerator: cpu}
methods:
  FTL: {class_path: FTL, init_args: {lr: 0.005, layers: [3], norm_constraint: 0.02}}
  FTM: {class_path: FTM, init_args: {lr: 0.005}}
  Wrong: {class_path: ROME, init_args: {statistics: no/such/file.safetensors}}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


def run(grid: Path, out: Path, *options: str) -> int:
    return main(["benchmark", str(grid), "--out", str(out), *options])


def found(out: Path) -> dict[str, object]:
    """What every cell found, by its name."""
    return {
        path.parent.name: json.loads(path.read_text())["points"]
        for path in sorted(out.glob("cells/*/scores.json"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the grid, run in one process to its end."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "small.yaml"
    path.write_text(GRID)
    assert run(path, folder / "out") == 1
    return folder / "out"


@pytest.mark.slow
def test_a_failed_cell_is_shown_and_the_grid_goes_on(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.write_text(GRID.replace("  row:", "  # row:").replace("  FTL:", "  # FTL:"))
    out = tmp_path / "out"
    assert run(grid, out) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 cells failed" in shown
    assert "Wrong" in (out / "tables.md").read_text()
    (error,) = out.glob("cells/*Wrong*/error.json")
    kept = json.loads(error.read_text())
    assert kept["type"] in shown
    assert "no/such/file" in kept["message"]
    assert "Traceback" in kept["traceback"]
    before = found(out)
    assert len(before) == 1
    # Another call has nothing to do, and says so by its status; --retry tries what failed.
    assert run(grid, out) == 1
    assert found(out) == before
    assert run(grid, out, "--list") == 0
    assert "failed   atlas · facts · pair · Wrong" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_left_out_with_a_sentence(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.write_text(GRID.replace("{lm: atlas}", "{lm: no/such/model, optional: true}"))
    assert run(grid, tmp_path / "out") == 0
    assert "no/such/model is absent" in capsys.readouterr().out


def test_some_methods_of_a_grid(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(grid, tmp_path, "--list", "--methods", "FTM", "Wrong") == 0
    shown = capsys.readouterr().out
    assert [line.rsplit(" ", 1)[1] for line in shown.splitlines()] == ["FTM", "Wrong"] * 2
    assert run(grid, tmp_path, "--list", "--methods", "FTM", "--protocols", "row") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run(grid, tmp_path, "--methods", "FTM", "FTMM") == 2
    assert f"--methods FTMM: not in {grid}, which has FTL, FTM, Wrong" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_find_what_one_process_finds(grid: Path, tmp_path: Path, whole: Path) -> None:
    parts = tmp_path / "parts"
    assert run(grid, parts, "--shard", "1/2") == 1
    assert 0 < len(found(parts)) < len(found(whole))
    run(grid, parts, "--shard", "2/2")
    assert found(parts) == found(whole)


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was(grid: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lightning_edit", "benchmark", str(grid), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 240
    while len(found(out)) < 2 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = found(out)
    assert 2 <= len(first) < len(found(whole))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/scores.json")}
    assert run(grid, out) == 1
    assert found(out) == found(whole)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in kept.items())


@pytest.mark.slow
def test_cells_share_one_baseline(whole: Path) -> None:
    assert len(list(whole.glob("baselines/*.jsonl"))) == 2  # two facts, and four
    assert len(found(whole)) == 4


@pytest.mark.slow
def test_a_cell_is_scored_as_the_baseline_that_it_takes(whole: Path) -> None:
    """In another layout what did not change would differ in its last digits."""
    layouts = [json.loads(one.read_text()) for one in whole.glob("baselines/*.passes.json")]
    assert len(layouts) == 2
    for one in whole.glob("cells/*/passes.json"):
        assert json.loads(one.read_text()) in layouts
    assert {layout["products"] for layout in layouts} == {_products()}


def _products() -> str:
    model, _ = load_language_model("atlas")
    return "onednn" if large_layers(model) else "torch"


@pytest.mark.slow
def test_one_model_asked_in_two_ways_has_two_baselines(grid: Path, tmp_path: Path) -> None:
    """Pristine answers through a chat template are not those to plain prompts."""
    model, tokenizer = load_language_model("atlas")
    tokenizer.chat_template = "{% for m in messages %}Paris and {{ m.content }} {% endfor %}"
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = GRID.split("methods:")[0].replace("  row:", "  # row:")
    models = f"models: {{plain: {{lm: {folder}}}, chat: {{lm: {folder}, lm_chat: true}}}}"
    text = text.replace("models: {atlas: {lm: atlas}}", models)
    grid.write_text(text + "methods:\n  FTM: {class_path: FTM, init_args: {lr: 0.005, steps: 1}}\n")
    assert run(grid, tmp_path / "out") == 0
    alone = tmp_path / "alone"
    assert run(grid, alone, "--models", "chat") == 0
    both, one = found(tmp_path / "out"), found(alone)
    assert len(both) == 2
    assert {name: both[name] for name in one} == one
    assert len(list((tmp_path / "out" / "baselines").glob("*.jsonl"))) == 2
