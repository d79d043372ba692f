"""EditedModel: all requests of a call or none, names of their own, undo and redo to the bit."""

import pytest

from lightning_edit.exceptions import LedgerError
from lightning_edit.models.weights import weights_hash
from tests.toy import ToyEditor, toy_model, toy_requests, toy_tokenizer

FACTS = [{"prompt": r.prompt, "target": r.target, "subject": r.subject} for r in toy_requests(6)]


def one_by_one(fail_at: str | None = None) -> ToyEditor:
    editor = ToyEditor(fail_at)
    editor.batched = False  # type: ignore[misc]  # a flag of the class; here of one editor
    return editor


def test_a_call_writes_all_its_requests_or_none() -> None:
    model = toy_model()
    pristine = weights_hash(model)
    edited = one_by_one("edit-3").edit_model(model, toy_tokenizer(), FACTS[:2])
    before = weights_hash(model)
    with pytest.raises(RuntimeError, match="planted"):
        edited.edit(FACTS[2:5])
    assert weights_hash(model) == before
    assert edited.ledger.request_ids == ("edit-0", "edit-1")
    edited.undo()
    assert weights_hash(model) == pristine


def test_a_name_belongs_to_one_edit_for_the_life_of_the_handle() -> None:
    edited = one_by_one().edit_model(toy_model(), toy_tokenizer(), FACTS[:2])
    edited.undo(["edit-0"])
    edited.edit(FACTS[2])
    assert edited.ledger.request_ids == ("edit-1", "edit-2")


def test_redo_gives_the_bits_from_before_the_undo() -> None:
    model = toy_model()
    edited = one_by_one().edit_model(model, toy_tokenizer(), FACTS[:3])
    before = weights_hash(model)
    edited.undo(["edit-1"]).redo(["edit-1"])
    assert weights_hash(model) == before
    assert edited.ledger.request_ids == ("edit-0", "edit-1", "edit-2")
    with pytest.raises(LedgerError, match="no edit undone is called 'edit-1'"):
        edited.redo(["edit-1"])
