"""Cells as a job array: what is asked of SLURM, and tasks that share a folder of files."""

import json
import os
import sys
from pathlib import Path

import pytest

from lightning_edit.__main__ import main
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.benchmark.slurm import CellsTask, SlurmOptions, submit
from lightning_edit.cli.slurm_options import minutes
from lightning_edit.exceptions import ConfigError
from tests.conftest import ROOT

GRID = """
models: {atlas: {lm: atlas}}
data: {facts: {class_path: AtlasDataModule}}
protocols: {pair: {protocol: batch, edits: 2}, one: {protocol: batch, edits: 1}}
modes: [tf]
columns: [[reliability/em@tf]]
trainer: {accelerator: cpu}
methods:
  FTL: {class_path: FTL, init_args: {lr: 0.005, layers: [3], norm_constraint: 0.02}}
  Wrong: {class_path: ROME, init_args: {statistics: no/such/file.safetensors}}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of sbatch and srun; what sbatch is given is kept in the file that is returned."""
    folder, kept = tmp_path / "bin", tmp_path / "sbatch.sh"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {kept}\necho "Submitted batch job 4711"\n')
    (folder / "srun").write_text("#!/bin/sh\nexit 1\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return kept


def test_a_grid_becomes_one_array_with_the_options_in_words(
    grid: Path, tmp_path: Path, login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(grid), "--out", str(tmp_path / "out"), "--launcher", "slurm"]
    options = {
        "partition": "short", "time": "1:30:00", "cpus": "8", "gpus": "1", "mem_gb": "24",
        "parallel": "2", "account": "mine", "setup": "module load cuda",
        "extra": "reservation=night",
    }  # fmt: skip
    given = [word for name, value in options.items() for word in (f"--slurm.{name}", value)]
    assert main([*arguments, *given]) == 0
    shown = capsys.readouterr().out
    assert "Submitted 4 cells as job 4711, 4 tasks" in shown
    lines = login_node.read_text().splitlines()
    for line in (
        "#SBATCH --partition=short", "#SBATCH --time=90", "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=1", "#SBATCH --mem=24GB", "#SBATCH --array=0-3%2",
        "#SBATCH --account=mine", "#SBATCH --reservation=night",
        "#SBATCH --job-name=benchmark-small", "#SBATCH --ntasks-per-node=1",
        "export OMP_NUM_THREADS=8", "module load cuda",
    ):  # fmt: skip
        assert line in lines
    assert not (tmp_path / "out/cells").exists()
    assert len(list((tmp_path / "out/slurm").glob("4711_*/*submitted.pkl"))) == 4


def test_several_cells_a_task(grid: Path, tmp_path: Path, login_node: Path) -> None:
    cells = read_grid(grid).cells
    submission = submit(read_grid(grid), cells, tmp_path, SlurmOptions(cells_per_task=3))
    assert "#SBATCH --array=0-1%2" in login_node.read_text()
    tasks = [job.submission().function for job in submission.jobs]
    assert [task.names for task in tasks] == [
        tuple(cell.name for cell in cells[number::2]) for number in range(2)
    ]
    # After a time limit the same cells are asked for again.
    assert tasks[0].checkpoint().function == tasks[0]


def test_a_job_that_slurm_refuses(grid: Path, tmp_path: Path, login_node: Path) -> None:
    (login_node.parent / "bin/sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"(?s)SLURM refuses the job: .*invalid partition"):
        submit(read_grid(grid), read_grid(grid).cells, tmp_path, SlurmOptions())


def test_what_is_missing_is_named(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["benchmark", str(grid), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--launcher", "slurm"]) == 2
    assert "there is no srun here" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*arguments, "--launcher", "slurm"]) == 2
    assert 'pip install "lightning-edit[slurm]"' in capsys.readouterr().err
    assert main([*arguments, "--slurm.time", "5"]) == 2
    assert "--slurm.time is for tasks of a job array; add --launcher slurm" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--launcher", "slurm", "--slurm.gpus", "4"]) == 2
    assert "gpus is 0 or 1, not 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("0:00:01", 1), ("1-12", 2160), ("2-0:30", 2910)],
)
def test_times_are_those_of_sbatch(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_a_grid_that_changed_after_the_submission(grid: Path, tmp_path: Path) -> None:
    names = tuple(cell.name for cell in read_grid(grid).cells)
    grid.write_text(GRID.replace("0.005", "0.006"))
    with pytest.raises(ConfigError, match="has changed since the job was submitted"):
        CellsTask(grid, names, tmp_path / "out")()


def found(out: Path) -> dict[str, object]:
    """What every cell found, by its name."""
    return {
        path.parent.name: json.loads(path.read_text())["points"]
        for path in sorted(out.glob("cells/*/scores.json"))
    }


@pytest.mark.slow
def test_tasks_find_what_one_process_finds_and_never_share_a_cell(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # What a task sees under SLURM: Lightning must not take ranks and signals from it.
    monkeypatch.setenv("SLURM_NTASKS", "3")
    monkeypatch.setenv("SLURM_JOB_NAME", "benchmark-small")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["benchmark", str(grid), "--out", str(whole)]) == 1
    # The same cells are submitted twice: both jobs want each of them.
    options = SlurmOptions(cluster="local", cells_per_task=4, cpus=1)
    cells = read_grid(grid).cells
    both = [submit(read_grid(grid), cells, out, options) for _ in range(2)]
    told = [line for one in both for _, text in one.wait() for line in text.splitlines()]
    assert len(told) == 2 * len(cells)
    for cell in cells:
        lines = [line for line in told if line.startswith(f"{cell.title}:")]
        ran = [line for line in lines if "another process" not in line]
        assert len(ran) == 1 or cell.method == "Wrong"
    assert found(out) == found(whole)
    assert len(found(out)) == 2
    capsys.readouterr()
    # A cell that is not finished is finished by the next call, the others are left alone.
    (lost, *_) = sorted(out.glob("cells/*FTL*/scores.json"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*FTL*/scores.json")}
    lost.unlink()
    del kept[lost]
    command = ["benchmark", str(grid), "--out", str(out), "--launcher", "slurm"]
    command += ["--slurm.cluster", "local", "--slurm.wait", "--methods", "FTL"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Submitted 1 cells" in shown
    assert "1 of 1 tasks: atlas" in shown
    assert found(out) == found(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


@pytest.mark.slow
def test_a_cell_that_asks_for_several_processes_is_refused(grid: Path, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("accelerator: cpu", "accelerator: cpu, devices: 2"))
    out = tmp_path / "out"
    arguments = ["benchmark", str(grid), "--out", str(out), "--methods", "FTL"]
    assert main([*arguments, "--protocols", "one"]) == 1
    (error,) = out.glob("cells/*/error.json")
    assert "a cell of a benchmark runs in one process" in json.loads(error.read_text())["message"]
