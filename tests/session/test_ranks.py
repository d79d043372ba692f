"""Editing in several processes: the run of one process, byte by byte, and an end in order."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.editors.base import Editor
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import ConfigError
from lightning_edit.session.trainer import EditTrainer
from tests.conftest import ROOT
from tests.forks import Forks
from tests.session.rank_cases import CASES, PLANTED, run_all
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.bits

SAME = [name for name in CASES if name not in PLANTED]
#: What ranks share of a case, beside the passes of a locate-then-edit search.
SHARED = {
    "toy": "run_pass",
    "ultraedit": "answer_factors",
    "malmen": "answer_factors",
    "ftm": "_train",
    "lora": "_train",
}
#: Run by two processes as well, whose shares are even: every way to share work, and the route of a
#: routing editor. Three, whose shares are not, run all.
WITH_TWO = [*SHARED, "memit", "mend-batch", "serac"]
LOST = "rank 0 of 2 lost another process"
#: Seconds of a process differ from run to run.
TIMES = "EfficiencyCallback"


def start(
    root: Path, processes: int, names: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.session.rank_cases"]
    return subprocess.run(
        [*command, str(root), str(processes), names, json.dumps(options)],
        check=False, timeout=900, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def edited(forks: Forks, root: Path, processes: int, names: str, **options: Any) -> None:
    forks.run(run_all, root, processes, names, options, ranks=processes, timeout=900)


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


def pristine_text() -> str:
    model = EditedModel.of(toy_model(), toy_tokenizer())
    return model.generate("the capital of land1 is", 3)


def assert_same(one: Path, other: Path, processes: int) -> None:
    expected, found = written(one), written(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert ranks(other, processes) == ranks(one, 1) * processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_protocol_and_family_is_the_run_of_one_process(
    tmp_path: Path, one_process: Path, forks: Forks, processes: int
) -> None:
    names = SAME if processes == 3 else WITH_TWO
    edited(forks, tmp_path, processes, ",".join(names))
    for name in names:
        assert_same(one_process / name, tmp_path / name, processes)
    for name in ("memit", "mend-batch", "malmen"):
        norms = ranks(tmp_path / name, processes)[0]["norms"]
        assert all(norm > 0.05 for norm in norms.values())
    (alone,) = passes(one_process / "memit", 1)
    searched = [one["_search_pass"] for one in passes(tmp_path / "memit", processes)]
    assert sum(searched) == alone["_search_pass"]
    assert processes == 3 or max(searched) - min(searched) <= 1
    assert ranks(tmp_path / "serac", processes)[0]["text"] != pristine_text()
    for name, work in SHARED.items():
        (alone,) = passes(one_process / name, 1)
        shares = [one[work] for one in passes(tmp_path / name, processes)]
        assert max(shares) < alone[work]
        # Nothing is done twice; of the evaluations some passes are too few to be shared.
        assert name == "toy" or sum(shares) == alone[work]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    root = tmp_path_factory.mktemp("one-process")
    edited(forks, root, 1, ",".join([*SAME, "plain"]))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "kill-first", "hang", "raise"])
def test_a_process_that_fails_ends_the_run_and_it_is_resumed(
    tmp_path: Path, one_process: Path, forks: Forks, what: str
) -> None:
    """Lightning's launcher starts them, and sees to their end as well."""
    begin = time.monotonic()
    failed = start(tmp_path, 2, what, rank_timeout=20.0)
    assert failed.returncode != 0
    assert time.monotonic() - begin < 150
    # Lightning's launcher looks every five seconds, and kills all that are left: it may be faster
    # than rank 0, which says what it lost as in the test below.
    if what == "hang":
        assert LOST in failed.stderr
    elif what != "kill-first":
        assert LOST in failed.stderr or "Child process with PID" in failed.stderr
    folder = tmp_path / what
    before = len(Journal(folder / "ledger").commits())
    assert 0 < before < 12
    folder.rename(tmp_path / "plain")
    processes = {"kill": 3, "hang": 1}.get(what, 2)
    edited(forks, tmp_path, processes, "plain", ckpt_path="last")
    assert_same(one_process / "plain", tmp_path / "plain", processes)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "ended"), [("kill", -signal.SIGKILL), ("raise", 1)])
def test_the_others_say_that_one_is_lost(
    tmp_path: Path, forks: Forks, what: str, ended: int
) -> None:
    """Without Lightning's launcher, which would kill them."""
    begun = forks.begin(run_all, tmp_path, 2, what, {"rank_timeout": 60.0}, ranks=2)
    assert begun.wait() == [1, ended]
    assert LOST in begun.said[0].read_text()
    assert ("planted failure" in begun.said[1].read_text()) == (what == "raise")


@pytest.mark.slow
def test_all_processes_are_killed_at_some_time_and_others_go_on(
    tmp_path: Path, one_process: Path, forks: Forks
) -> None:
    begun = forks.begin(run_all, tmp_path, 2, "plain", {}, ranks=2)
    journal, until = tmp_path / "plain/ledger/journal.jsonl", time.monotonic() + 300
    while time.monotonic() < until:
        if journal.exists() and journal.read_bytes().count(b"commit") >= 3:
            break
        time.sleep(0.002)
    begun.kill()
    assert begun.wait() == [-signal.SIGKILL] * 2
    assert 3 <= len(Journal(journal.parent).commits()) < 12
    edited(forks, tmp_path, 3, "plain", ckpt_path="last")
    assert_same(one_process / "plain", tmp_path / "plain", 3)


@pytest.mark.slow
def test_a_delta_that_differs_in_one_bit_is_not_written(tmp_path: Path, forks: Forks) -> None:
    failed = forks.begin(run_all, tmp_path, 2, "differ", {}, ranks=2)
    assert failed.wait() == [1, 1]
    assert "the edit of fact-7: rank 1 has computed another transformer.h.0.mlp" in failed.told()
    made = [name for entry in Journal(tmp_path / "differ/ledger").commits() for name in entry.ids]
    assert made == [f"fact-{number}" for number in range(7)]


TORCHRUN = [
    "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--master_addr",
    "127.0.0.1", "--master_port", "29631",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_two_nodes(tmp_path: Path, one_process: Path, launcher: str) -> None:
    """Both nodes are this machine; Lightning's own launcher starts a second process on each."""
    devices = 1 if launcher == "torchrun" else 2
    program = ["-m", "tests.session.rank_cases", str(tmp_path), str(devices), "memit,rome-single"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    nodes = []
    for node in range(2):
        start, own = [*TORCHRUN, "--node_rank", str(node)], {}
        if launcher == "lightning":
            start, own = [], {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1"}
            own["MASTER_PORT"] = "29632"
        nodes.append(
            subprocess.Popen(
                [sys.executable, *start, *program, json.dumps({"nodes": 2})],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=environment | own,
            )
        )  # fmt: skip
    said = [node.communicate(timeout=900)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    for name in ("memit", "rome-single"):
        assert_same(one_process / name, tmp_path / name, 2 * devices)
    threads = [json.loads(path.read_text()) for path in tmp_path.glob("threads-*")]
    assert len(threads) == 2 * devices
    # A thread of gloo that is left can abort the process while Python shuts down.
    assert not [name for names in threads for name in names if "gloo" in name]


class Dealing(OneProcess):
    """Two processes, as an editor sees them: notes what is dealt, and who works meanwhile."""

    size = 2

    def __init__(self, editor: Editor) -> None:
        self.editor, self.dealt = editor, 0

    def deal(self, items: Any, work: Any) -> list[Any]:
        listed = list(items)
        self.dealt += len(listed)
        parts = [module for module in self.editor.modules() if isinstance(module, Editor)]
        assert [part.ranks for part in parts] == [ALONE] * len(parts)
        return [work(item) for item in listed]


def test_edits_of_one_request_each_are_dealt_and_found_alone() -> None:
    editor = ToyEditor(fail_at="fact-5").bind(toy_model(), toy_tokenizer())
    ranks = Dealing(editor)
    editor.work_with(ranks)
    found = editor.edit_independent(encode_batch(editor.prompts, toy_requests(3)))
    assert [delta.request_ids for delta in found] == [("fact-0",), ("fact-1",), ("fact-2",)]
    assert ranks.dealt == 3
    # After an error too an editor works with the others again.
    with pytest.raises(RuntimeError, match="planted"):
        editor.edit_independent(encode_batch(editor.prompts, toy_requests(7)))
    assert editor.ranks is ranks


def test_processes_that_would_lose_the_edits_are_refused(tmp_path: Path) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", devices=2, strategy="ddp_spawn")
    with pytest.raises(ConfigError, match="strategy='ddp'"):
        trainer.edit(editor, ToyData(2), run=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
