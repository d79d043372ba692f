"""A resume that is refused has changed nothing; what it goes on from is what was saved."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.exceptions import LedgerError, RunLockedError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.content_hash import content_hash
from lightning_edit.storage.run_lock import LOCK, run_lock
from lightning_edit.types import EditBatch
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer


def edit(run: Path, fail_at: str | None = None, seed: int = 0, ckpt_path: str | None = None) -> str:
    model = toy_model()
    editor = ToyEditor(fail_at).bind(model, toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.edit(
        editor, ToyData(6), run=str(run), checkpoint_every=2, modes=("tf",), eval_at=[1, 3, "end"],
        seed=seed, ckpt_path=ckpt_path,
    )  # fmt: skip
    return weights_hash(model)


def interrupted(run: Path, seed: int = 0) -> None:
    """A run that ends after five edits; its checkpoint holds four."""
    with pytest.raises(RuntimeError, match="planted"):
        edit(run, fail_at="fact-5", seed=seed)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    interrupted(folder / "run")
    interrupted(folder / "other", seed=1)
    return folder


def files(run: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != LOCK}


def other_checkpoint(run: Path) -> None:
    other = run.with_name("other") / "checkpoints" / "last.ckpt"
    (run / "checkpoints" / "last.ckpt").write_bytes(other.read_bytes())


def flip(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        data = bytearray(path.read_bytes())
        at = data.index(b"0." if name.endswith("jsonl") else b"e")
        data[at] ^= 1
        path.write_bytes(data)

    return change


def without_delta(run: Path) -> None:
    (run / "ledger" / "000003.safetensors").unlink()


def without_rows(run: Path) -> None:
    (run / "cases.jsonl").write_bytes((run / "cases.jsonl").read_bytes()[:100])


def without_journal(run: Path) -> None:
    (run / "ledger" / "journal.jsonl").unlink()


def other_history(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["editor.history"] += 1
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_checkpoint, "belong to different runs; nothing was changed"),
        (without_delta, r"000003\.safetensors is missing"),
        (flip("ledger/000002.safetensors"), r"000002\.safetensors is not what the journal"),
        (without_rows, r"cases\.jsonl has 100 bytes but the checkpoint"),
        (flip("cases.jsonl"), r"cases\.jsonl was changed after the checkpoint"),
        (flip("baseline.jsonl"), r"baseline\.jsonl is missing, or was changed"),
        (flip("passes.json"), r"passes\.json is missing, or was changed"),
        (without_journal, "older than the checkpoint"),
        (other_history, "history in the checkpoint is not what was saved"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_refused_resume_changes_nothing(
    cut: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(cut, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    damage(run)
    before = files(run)
    with pytest.raises(LedgerError, match=words):
        edit(run, ckpt_path="last")
    assert files(run) == before


def test_a_second_run_in_one_folder_is_refused_before_it_writes(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = files(tmp_path)
    for ckpt_path in (None, "last"):
        with run_lock(tmp_path), pytest.raises(RunLockedError, match="is being written by"):
            edit(tmp_path, ckpt_path=ckpt_path)
    assert files(tmp_path) == before
    whole = edit(tmp_path.with_name("whole"))
    assert edit(tmp_path, ckpt_path="last") == whole
    assert (tmp_path / LOCK).read_bytes() == b""


def test_resuming_nothing_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no run"):
        edit(tmp_path / "typo", ckpt_path="last")
    assert not (tmp_path / "typo").exists()


def test_files_of_edits_taken_back_are_not_needed(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut / "run", tmp_path, dirs_exist_ok=True)
    journal = Journal(tmp_path / "ledger")
    (tmp_path / "ledger" / "000005.safetensors").unlink()  # after the checkpoint
    journal.check_truncation(5, None)
    with pytest.raises(LedgerError, match="is missing"):
        journal.check_truncation(6, None)


def test_content_hash_sees_values_types_and_nesting() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    others = [
        tensor, tensor.double(), tensor.T, tensor + 1, tensor.bfloat16(), [tensor], {"a": tensor},
        {"b": tensor}, [1], [1.0], ["1"], [None], [[1]], [1, 2], "12", [True], [], {}, tensor[:0],
    ]  # fmt: skip
    assert len({content_hash(one) for one in others}) == len(others)
    assert content_hash(tensor.T.contiguous().T) == content_hash(tensor)
    assert content_hash(torch.tensor(1.0)) == content_hash(torch.tensor(1.0))


def test_a_changed_state_of_a_callback_is_noticed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    (name,) = (name for name in content["callbacks"] if "EditCheckpoint" in name)
    content["callbacks"][name]["last_model_path"] = "another"
    torch.save(content, path)
    before = files(tmp_path)
    with pytest.raises(LedgerError, match="state of callbacks in the checkpoint is not what was"):
        edit(tmp_path, ckpt_path="last")
    assert files(tmp_path) == before


def test_a_journal_that_was_cut_between_two_lines_is_noticed(tmp_path: Path) -> None:
    edit(tmp_path)
    path = tmp_path / "ledger" / "journal.jsonl"
    assert len(open_journal(tmp_path).active()) == 6
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(LedgerError, match=f"has {len(lines) - 1} lines, but not the {len(lines)}"):
        open_journal(tmp_path)
    with pytest.raises(LedgerError, match="edits are missing"):
        EditedModel.open(tmp_path, language_model=(toy_model(), toy_tokenizer()))


@pytest.mark.parametrize("end", [{}, 3, {"lines": "x", "head": ""}])
def test_a_damaged_record_of_the_journals_end_is_named(end: object, tmp_path: Path) -> None:
    edit(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"journal": end}))
    with pytest.raises(LedgerError, match="`journal` must hold `lines` and `head`"):
        open_journal(tmp_path)


def test_an_unfinished_run_is_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path)
    open_journal(tmp_path)
    assert "is not finished (it has no results.json): these are its edits so far, 5" in caplog.text


def test_a_point_beyond_the_stream_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.edit(editor, ToyData(2), run=str(tmp_path), modes=("tf",), eval_at=[1, 500, "end"])
    assert "eval_at has 500, but the stream has 2 edits" in caplog.text


def test_two_runs_on_one_model_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, order = toy_model(), toy_tokenizer(), []
    own = ToyEditor.edit

    def watched(editor: ToyEditor, batch: EditBatch) -> Delta:
        order.append(threading.current_thread().name)
        time.sleep(0.02)
        return own(editor, batch)

    monkeypatch.setattr(ToyEditor, "edit", watched)

    def run(name: str) -> None:
        trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        editor = ToyEditor().bind(model, tokenizer)
        trainer.edit(editor, ToyData(4), run=str(tmp_path / name), protocol="single")

    threads = [threading.Thread(target=run, args=(name,), name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 8
    assert order in (sorted(order), sorted(order, reverse=True))
    assert weights_hash(model) == weights_hash(toy_model())
