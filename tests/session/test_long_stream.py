"""A long stream: no step, resume or undo does more because the stream is long."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

pytestmark = pytest.mark.bits

ONE = toy_requests(1)[0]
BATCH = encode_batch(toy_tokenizer(), [ONE])


def edit(
    run: Path, every: int, fail_at: str | None = None, ckpt_path: str | None = None, count: int = 30
) -> str:
    model = toy_model()
    editor = ToyEditor(fail_at, gain=1e-3).bind(model, toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.edit(
        editor, ToyData(count), run=str(run), checkpoint_every=3, modes=("tf",),
        ckpt_path=ckpt_path, snapshot_every=every,
    )  # fmt: skip
    return weights_hash(model)


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Counter[str]]:
    """Count the files of a folder that are opened, and its listings, inside the block."""
    found: Counter[str] = Counter()

    def counted(module: object, name: str, what: str) -> None:
        real = getattr(module, name)

        def call(path: object = ".", *args: object, **options: object) -> object:
            text = str(path)
            if text.startswith(str(folder)):
                found[what] += 1
                found[Path(text).suffix] += 1
            return real(path, *args, **options)

        patch.setattr(module, name, call)

    with monkeypatch.context() as patch:
        counted(io, "open", "open")
        counted(os, "scandir", "list")
        counted(os, "listdir", "list")
        # The type checks of the tests look at an item of the list in force now and then, so what a
        # replay reads is counted apart.
        load, replay = Delta.load, Ledger._load

        def noted(path: Path, *args: object) -> Delta:
            found["delta"] += 1
            return load(path, *args)

        def replayed(self: Ledger, entry: Entry) -> Delta:
            found["replayed"] += 1
            return replay(self, entry)

        patch.setattr(Delta, "load", noted)
        patch.setattr(Ledger, "_load", replayed)
        yield found


def files(run: Path) -> dict[str, bytes]:
    kept = [p for p in (run / "ledger").rglob("*") if p.is_file()]
    return {str(p.relative_to(run)): p.read_bytes() for p in kept} | {
        "cases.jsonl": (run / "cases.jsonl").read_bytes()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_run_that_is_resumed_from_a_snapshot_has_the_bits_of_one_that_was_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = edit(whole, every=5)
    with pytest.raises(RuntimeError, match="planted"):
        edit(cut, every=5, fail_at="fact-22")  # snapshots of 5 … 20, checkpoint of 21 edits
    with opened(monkeypatch, cut / "ledger") as found:
        assert edit(cut, every=5, ckpt_path="last") == expected
    assert found["replayed"] == 1  # the 21st
    assert files(cut) == files(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_snapshot_behind_the_checkpoint_is_made_again(tmp_path: Path) -> None:
    expected = edit(tmp_path / "none", every=0)
    assert not (tmp_path / "none" / "ledger" / "snapshots").exists()
    with pytest.raises(RuntimeError, match="planted"):
        edit(tmp_path / "late", every=4, fail_at="fact-20")  # checkpoint of 18, snapshot of 20
    assert edit(tmp_path / "late", every=4, ckpt_path="last") == expected


def test_a_run_opens_from_its_snapshot_and_undoes_an_old_edit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = edit(tmp_path / "run", every=5, count=23)
    language_model = (toy_model(), toy_tokenizer())
    with opened(monkeypatch, tmp_path / "run" / "ledger") as found:
        edited = EditedModel.open(tmp_path / "run", editor=Plain(), language_model=language_model)
    assert found["replayed"] == 3
    assert weights_hash(language_model[0]) == expected
    edited.undo("fact-11")
    scratch = toy_model()
    Ledger(scratch, directory=tmp_path / "run" / "ledger", snapshot_every=0).replay()
    assert weights_hash(scratch) == weights_hash(language_model[0]) != expected
    assert weights_hash(edited.redo().model) == expected
    with pytest.raises(ConfigError, match="snapshot_every must be 0"):
        edit(tmp_path / "wrong", every=-1)


class Plain(Editor):
    """Keeps no history, so no delta is read for it."""

    def edit(self, batch: object) -> Delta:
        raise NotImplementedError


def commit(ledger: Ledger, editor: ToyEditor, number: int) -> None:
    named = EditRequest(f"fact-{number}", ONE.prompt, ONE.target, ONE.subject)
    ledger.commit(editor.edit(replace(BATCH, requests=(named,))), [named])


@pytest.mark.slow
def test_a_thousand_commits_cost_the_same_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations on files are counted, not seconds: they are exact on a machine under load."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    editor = ToyEditor(gain=1e-6).bind(toy_model(), toy_tokenizer())
    ledger = Ledger(editor.language_model, editor, tmp_path, snapshot_every=100)
    ledger.open(editor="ToyEditor")
    counts = []
    for number in range(1000):
        if number in (10, 910):
            with opened(monkeypatch, tmp_path) as found:
                for n in range(number, number + 40):
                    commit(ledger, editor, n)
            counts.append(found)
        elif not any(start <= number < start + 40 for start in (10, 910)):
            commit(ledger, editor, number)
    for found in counts:
        assert found["list"] == 0
        # A delta that the type checks of the tests look at is opened once for its hash.
        assert found["open"] - found["delta"] == 4 * 40
    assert len(list((tmp_path / "snapshots").iterdir())) <= 7
    # A journal of 1,000 lines opens no delta file; the tail alone is read.
    expected, fresh = weights_hash(editor.language_model), toy_model()
    with opened(monkeypatch, tmp_path) as found:
        Ledger(fresh, directory=tmp_path, snapshot_every=100).replay()
    assert found["replayed"] == 0
    assert weights_hash(fresh) == expected
    # Of what a commit leaves in memory nothing is a tensor or a text of a request.
    assert len(ledger.in_force._deltas) <= 64
    with opened(monkeypatch, tmp_path) as found:
        ledger.undo(["fact-940"])
    assert found["delta"] <= 200
    undone = json.loads((tmp_path / "journal.jsonl").read_bytes().splitlines()[-1])
    assert undone["of"] == [941]
    scratch = toy_model()
    (tmp_path / "snapshots").rename(tmp_path / "away")
    Ledger(scratch, directory=tmp_path, snapshot_every=0).replay()
    assert weights_hash(scratch) == weights_hash(editor.language_model)
    ledger.redo(["fact-940"])
    assert weights_hash(editor.language_model) == expected
