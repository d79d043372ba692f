"""The loop: protocols, evaluation points, and that nothing is lost or done twice."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import DataError, LedgerError, LedgerWriteError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.stream import EditStream, evaluation_points
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.bits

MODES = ("tf",)


def edit(
    run: Path,
    count: int = 12,
    fail_at: str | None = None,
    wait_at: str | None = None,
    **options: object,
) -> str:
    """Run a stream of toy edits and return the final hash of the weights."""
    model = toy_model()
    editor = ToyEditor(fail_at, wait_at).bind(model, toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    options = {"protocol": "sequential", "checkpoint_every": 3, "modes": MODES} | options
    trainer.edit(editor, ToyData(count), run=str(run), **options)
    return weights_hash(model)


def scores(run: Path) -> object:
    """What a run found, without how long it took."""
    results = json.loads((run / "results.json").read_text())
    return results["points"], (run / "cases.jsonl").read_bytes()


def edits_in_force(run: Path) -> list[str]:
    return [name for entry in Journal(run / "ledger").active() for name in entry.ids]


def test_sequential_scores_all_edits_so_far(tmp_path: Path) -> None:
    edit(tmp_path, eval_at=[1, 5, "end"])
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    asked = {after: {r["edit_id"] for r in rows if r["after"] == after} for after in (1, 5, 12)}
    assert {after: len(ids) for after, ids in asked.items()} == {1: 1, 5: 5, 12: 12}
    assert len(edits_in_force(tmp_path)) == 12


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
def test_protocols_start_from_the_pristine_model(tmp_path: Path, protocol: str) -> None:
    pristine = weights_hash(toy_model())
    final = edit(tmp_path, protocol=protocol, batch_size=4)
    assert (final == pristine) == (protocol == "single")
    commits = Journal(tmp_path / "ledger").commits()
    assert [len(entry.ids) for entry in commits] == {
        "single": [1] * 12,
        "batch": [12],
        "sequential": [4, 4, 4],
    }[protocol]


def test_single_does_not_depend_on_how_many_are_searched_together(tmp_path: Path) -> None:
    for name, size in (("one", 1), ("five", 5)):
        edit(tmp_path / name, protocol="single", batch_size=size)
    assert scores(tmp_path / "one") == scores(tmp_path / "five")


class CaseData(ToyData):
    """The made-up facts, every second and third of four as one case."""

    def load_split(self, split: str) -> list[EditRequest]:
        return [
            replace(request, case=f"case-{i // 4}" if i % 4 in (1, 2) else None)
            for i, request in enumerate(super().load_split(split))
        ]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_case_is_written_and_scored_as_one(tmp_path: Path, protocol: str, batched: bool) -> None:
    model = toy_model()
    pristine = weights_hash(model)
    editor = ToyEditor().bind(model, toy_tokenizer())
    editor.batched = batched
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.edit(
        editor, CaseData(8), protocol=protocol, run=str(tmp_path), modes=MODES, batch_size=1
    )
    commits = [entry.ids for entry in Journal(tmp_path / "ledger").commits()]
    together = [("fact-1", "fact-2"), ("fact-5", "fact-6")]
    assert all((pair in [tuple(ids) for ids in commits]) == batched for pair in together)
    assert sorted(name for ids in commits for name in ids) == [f"fact-{i}" for i in range(8)]
    if protocol == "single":
        assert weights_hash(model) == pristine
        rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
        right = {r["edit_id"]: r["measures"]["nll@tf"] for r in rows if r["kind"] == "rewrite"}
        assert len(right) == 8
        assert {row.get("case") for row in rows} == {None, "case-0", "case-1"}


def test_requests_of_a_case_stand_together() -> None:
    requests = [replace(request, case="one") for request in toy_requests(2)]
    with pytest.raises(DataError, match="put the requests of a case next to each other"):
        EditStream([requests[0], *toy_requests(4)[2:], requests[1]], toy_tokenizer(), "sequential")


@pytest.mark.parametrize(
    "fail_at",
    ["fact-0", *(pytest.param(f"fact-{at}", marks=pytest.mark.slow) for at in (4, 6)), "fact-11"],
)
def test_resume_after_a_failure_equals_the_uninterrupted_run(tmp_path: Path, fail_at: str) -> None:
    whole = edit(tmp_path / "whole", eval_at=[1, 5, "end"])
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "cut", eval_at=[1, 5, "end"], fail_at=fail_at)
    resumed = edit(tmp_path / "cut", eval_at=[1, 5, "end"], ckpt_path="last")
    assert resumed == whole
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")
    assert edits_in_force(tmp_path / "cut") == edits_in_force(tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = edit(tmp_path)
    before = scores(tmp_path), (tmp_path / "ledger" / "journal.jsonl").read_bytes()
    assert edit(tmp_path, ckpt_path="last") == first
    assert (scores(tmp_path), (tmp_path / "ledger" / "journal.jsonl").read_bytes()) == before


def _child(run: Path, resume: bool, wait_at: str | None) -> None:
    # One thread: the child of a fork has none of its parent's.
    torch.set_num_threads(1)
    # A shell lets what it starts in the background ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = "last" if resume else None
    edit(run, count=220, wait_at=wait_at, checkpoint_every=7, ckpt_path=path)


def _start(
    run: Path, resume: bool, wait_at: str | None = None
) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(run, resume, wait_at)
    )
    process.start()
    return process


def _wait_for_lines(run: Path, lines: int, process: multiprocessing.process.BaseProcess) -> None:
    journal = run / "ledger" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, object]:
    """The hash and the scores of a run of 220 edits that nothing ended."""
    run = tmp_path_factory.mktemp("whole")
    return edit(run, count=220, checkpoint_every=7), scores(run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kill_and_resume_of_220_edits(tmp_path: Path, whole: tuple[str, object], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    kills = sorted(torch.randint(1, 220, (4,), generator=draw).tolist())
    run = tmp_path / "cut"
    for number, lines in enumerate(kills):
        process = _start(run, resume=number > 0)
        _wait_for_lines(run, lines, process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    found = edit(run, count=220, checkpoint_every=7, ckpt_path="last")
    assert (found, scores(run)) == whole
    assert edits_in_force(run) == [request.id for request in toy_requests(220)]


@pytest.mark.slow
def test_interrupt_and_resume(tmp_path: Path, whole: tuple[str, object]) -> None:
    process = _start(tmp_path / "cut", resume=False, wait_at="fact-100")
    _wait_for_lines(tmp_path / "cut", 60, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1
    found = edit(tmp_path / "cut", count=220, checkpoint_every=7, ckpt_path="last")
    assert (found, scores(tmp_path / "cut")) == whole


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = edit(tmp_path / "whole")
    real, calls = os.fsync, iter(range(10_000))

    def full(descriptor: int) -> None:
        if next(calls) >= after:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerWriteError, match=r"no space is left.*resume the run"):
        edit(tmp_path / "cut")
    monkeypatch.undo()
    assert edit(tmp_path / "cut", ckpt_path="last") == whole
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    edit(tmp_path)
    with pytest.raises(LedgerError, match="--ckpt_path last"):
        edit(tmp_path)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no run"):
        edit(tmp_path, ckpt_path="last")


def test_resume_with_other_requests_is_refused(tmp_path: Path) -> None:
    edit(tmp_path)
    with pytest.raises(LedgerError, match=r"config\.yaml of the run"):
        edit(tmp_path, batch_size=2, ckpt_path="last")


def test_resume_in_other_modes_is_refused(tmp_path: Path) -> None:
    edit(tmp_path)
    with pytest.raises(DataError, match="modes that the run was started with"):
        edit(tmp_path, modes=("tf", "gen"), ckpt_path="last")


def test_stream_keeps_its_position() -> None:
    stream = EditStream(toy_requests(7), toy_tokenizer(), "sequential", 2)
    assert [len(batch) for batch in stream] == [2, 2, 2, 1]
    stream.load_state_dict({"committed": 3})
    assert [batch.ids for batch in stream] == [("fact-6",)]


def test_stream_refuses_double_ids() -> None:
    with pytest.raises(ValueError, match="own id"):
        EditStream([*toy_requests(2), *toy_requests(1)], toy_tokenizer(), "batch")


def test_evaluation_points() -> None:
    batches = [[0] * 4, [0] * 4, [0] * 2]
    assert evaluation_points(None, batches) == {10}
    assert evaluation_points([0, 1, 8, 1000, "end"], batches) == {4, 8, 10}
    with pytest.raises(ValueError, match="numbers of edits"):
        evaluation_points(["last"], batches)
