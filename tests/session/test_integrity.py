"""A resume that is refused has changed nothing; what it goes on from is what was saved."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError, RunLockedError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.storage.content_hash import content_hash
from lightning_edit.storage.run_lock import LOCK, run_lock
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
