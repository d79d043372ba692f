"""Staged edits leave no trace unless committed; run-time state needs a runtime."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import LedgerError
from lightning_edit.models.weights import weights_hash
from tests.edits.test_ledger import DTYPES, History, delta, edited, model_of, request

pytestmark = pytest.mark.bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_staged_edit_has_the_bits_of_its_commit_and_is_dropped_without_a_trace(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, twin = model_of(dtype), model_of(dtype)
    ledger = edited(Ledger(model, History(), tmp_path / "run"), [0, 1])
    before, journal = weights_hash(model), (tmp_path / "run" / "journal.jsonl").read_bytes()
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    with ledger.staged(delta(2), [request(2)]):
        staged = weights_hash(model)
        assert ledger.request_ids == ("e0", "e1")
        for refused in (lambda: edited(ledger, [3]), lambda: ledger.undo(["e0"])):
            with pytest.raises(LedgerError, match="another edit is being tried"):
                refused()
    assert weights_hash(model) == before
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == files
    with pytest.raises(RuntimeError, match="planted"), ledger.staged(delta(2), [request(2)]):
        raise RuntimeError("planted")
    assert weights_hash(model) == before
    with ledger.staged(delta(2), [request(2)]) as trial:
        assert trial.commit() is trial.commit()
    edited(Ledger(twin), range(3))
    assert staged == weights_hash(model) == weights_hash(twin)
    assert ledger.request_ids == ("e0", "e1", "e2")
    ledger.undo(ledger.request_ids)
    assert weights_hash(model) == weights_hash(model_of(dtype))


class Codebook:
    """A runtime that notes what it is to install."""

    def __init__(self) -> None:
        self.installed: list[str] = []

    def install(self, in_force: Sequence[Delta]) -> None:
        self.installed = [name for one in in_force if one.state for name in one.request_ids]


def test_what_nobody_installs_is_refused_and_what_a_runtime_installs_follows_the_list(
    tmp_path: Path,
) -> None:
    model = model_of()
    before = weights_hash(model)
    edits = [Delta((f"m{n}",), state={"keys": torch.full((1, 4), float(n))}) for n in range(3)]
    for held in (edits[0], Delta(("p",), prompts={"p": "Imagine that"})):
        with pytest.raises(LedgerError, match=r"acts at run time .* nothing was written"):
            Ledger(model, directory=tmp_path / "none").commit(held, [])
    assert not (tmp_path / "none").exists()
    codebook = Codebook()
    ledger = Ledger(model, directory=tmp_path / "run", runtime=codebook)
    for one in edits:
        ledger.commit(one, [])
    with ledger.staged(Delta(("m3",), state={"keys": torch.ones(1, 4)}), []):
        assert codebook.installed == ["m0", "m1", "m2", "m3"]
    assert codebook.installed == ["m0", "m1", "m2"]
    ledger.undo(["m1"])
    assert codebook.installed == ["m0", "m2"]
    ledger.redo(["m1"])
    assert codebook.installed == ["m0", "m1", "m2"]
    with pytest.raises(LedgerError, match="acts at run time"):
        Ledger(model, directory=tmp_path / "run").replay()
    again = Codebook()
    Ledger(model, directory=tmp_path / "run", runtime=again).replay()
    assert again.installed == ["m0", "m1", "m2"]
    ledger.undo(ledger.request_ids)
    assert codebook.installed == []
    assert weights_hash(model) == before
