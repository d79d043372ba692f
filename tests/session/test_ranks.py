"""Editing in several processes: the run of one process, byte by byte, and an end in order."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import ConfigError
from lightning_edit.session.trainer import EditTrainer
from tests.conftest import ROOT
from tests.session.rank_cases import CASES, PLANTED, run
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = pytest.mark.bits

SAME = [name for name in CASES if name not in PLANTED]
#: Seconds of a process differ from run to run.
TIMES = "EfficiencyCallback"


def start(
    root: Path, processes: int, names: str, launch: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launch, "-m", "tests.session.rank_cases"]
    return subprocess.run(
        [*command, str(root), str(processes), names, json.dumps(options)],
        check=False, timeout=500, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def edited(root: Path, processes: int, names: str, **options: Any) -> None:
    done = start(root, processes, names, **options)
    assert done.returncode == 0, done.stderr[-4000:]


def ranks(folder: Path, processes: int) -> list[Any]:
    """What every process ended with; they may end a moment after the first."""
    files = [folder / f"rank-{rank}.json" for rank in range(processes)]
    until = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < until:
        time.sleep(0.1)
    return [_without_times(json.loads(file.read_text())) for file in files]


def passes(folder: Path, processes: int) -> list[dict[str, int]]:
    return [json.loads((folder / f"passes-{rank}.json").read_text()) for rank in range(processes)]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not k.startswith("efficiency")}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def written(folder: Path) -> dict[str, Any]:
    """The files of a run, without seconds."""
    files = [*folder.glob("*.jsonl"), *folder.glob("ledger/*"), *folder.glob("editor/**/*.*")]
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()
    }
    rows = found.pop("measures.jsonl", b"").splitlines()
    found["measures"] = [row for row in rows if json.loads(row)["by"] != TIMES]
    return found


def assert_same(one: Path, other: Path, processes: int) -> None:
    expected, found = written(one), written(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert ranks(other, processes) == ranks(one, 1) * processes


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    run(tmp_path / "1", 1, "memit")
    edited(tmp_path / "2", 2, "memit")
    assert_same(tmp_path / "1/memit", tmp_path / "2/memit", 2)
    # And they share the work.
    (alone,) = passes(tmp_path / "1/memit", 1)
    shares = [one["_search_pass"] for one in passes(tmp_path / "2/memit", 2)]
    assert sorted(shares) == [alone["_search_pass"] // 2, -(-alone["_search_pass"] // 2)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_protocol_and_family_is_the_run_of_one_process(
    tmp_path: Path, one_process: Path, processes: int
) -> None:
    edited(tmp_path, processes, ",".join(SAME))
    for name in SAME:
        assert_same(one_process / name, tmp_path / name, processes)
    norms = ranks(tmp_path / "memit", processes)[0]["norms"]
    assert all(norm > 0.1 for norm in norms.values())
    (alone,) = passes(one_process / "toy", 1)
    assert all(one["run_pass"] < alone["run_pass"] for one in passes(tmp_path / "toy", processes))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one-process")
    edited(root, 1, ",".join(SAME))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "kill-first", "hang", "raise"])
def test_a_process_that_fails_ends_the_run_and_it_is_resumed(tmp_path: Path, what: str) -> None:
    edited(tmp_path / "whole", 1, "plain")
    begin = time.monotonic()
    failed = start(tmp_path, 2, what, rank_timeout=20.0)
    assert failed.returncode != 0
    assert time.monotonic() - begin < 150
    if what != "kill-first":
        assert "rank 0 of 2 lost another process" in failed.stderr
    folder = tmp_path / what
    before = len(Journal(folder / "ledger").commits())
    assert 0 < before < 12
    folder.rename(tmp_path / "plain")
    processes = {"kill": 3, "hang": 1}.get(what, 2)
    edited(tmp_path, processes, "plain", ckpt_path="last")
    assert_same(tmp_path / "whole/plain", tmp_path / "plain", processes)


@pytest.mark.slow
def test_a_delta_that_differs_in_one_bit_is_not_written(tmp_path: Path) -> None:
    failed = start(tmp_path, 2, "differ")
    assert failed.returncode != 0
    assert "the edit of fact-7: rank 1 has computed another transformer.h.0.mlp" in failed.stderr
    made = [name for entry in Journal(tmp_path / "differ/ledger").commits() for name in entry.ids]
    assert made == [f"fact-{number}" for number in range(7)]


@pytest.mark.slow
def test_torchrun_starts_the_processes_as_two_nodes(tmp_path: Path, one_process: Path) -> None:
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank",
                str(node), "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port",
                "29631", "-m", "tests.session.rank_cases", str(tmp_path), "1", "memit,rome-single",
                json.dumps({"nodes": 2}),
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    for name in ("memit", "rome-single"):
        assert_same(one_process / name, tmp_path / name, 2)


def test_processes_that_would_lose_the_edits_are_refused(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", devices=2, strategy="ddp_spawn")
    with pytest.raises(ConfigError, match="strategy='ddp'"):
        trainer.edit(editor, ToyData(2), run=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
