"""Edits added to a finished run by hand are not lost, and the report says that they are there."""

from pathlib import Path

import pytest

from lightning_edit.edits.edited_model import EditedModel, require_question
from lightning_edit.exceptions import DataError, LedgerError
from lightning_edit.models.weights import weights_hash
from lightning_edit.report.undone import undone_edits
from lightning_edit.session.trainer import EditTrainer
from tests.toy import ToyData, ToyEditor, toy_model, toy_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


def trainer() -> EditTrainer:
    return EditTrainer(logger=False, enable_progress_bar=False, accelerator="cpu")


def test_a_resume_does_not_lose_what_was_added_to_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    trainer().edit(editor, ToyData(3), protocol="sequential", run=str(run))
    assert undone_edits(run).sentence == ""
    again = ToyEditor()
    handle = EditedModel.open(run, editor=again, language_model=(toy_model(), toy_tokenizer()))
    handle.edit({"id": "later", "prompt": "the capital of land200 is", "target": "city7"})
    journal = (run / "ledger" / "journal.jsonl").read_bytes()
    del handle
    assert undone_edits(run).added == ("later",)
    assert "later was written after the run" in undone_edits(run).sentence
    other = ToyEditor().bind(toy_model(), toy_tokenizer())
    with pytest.raises(LedgerError, match="later was written to this run after its last"):
        trainer().edit(other, ToyData(3), protocol="sequential", run=str(run), ckpt_path="last")
    assert (run / "ledger" / "journal.jsonl").read_bytes() == journal


def test_a_handle_whose_editor_went_to_another_model_says_so() -> None:
    editor = ToyEditor()
    fact = {"prompt": "the capital of land1 is", "target": "city2"}
    first = editor.edit_model(toy_model(), toy_tokenizer(), fact)
    editor.edit_model(toy_model(), toy_tokenizer(), fact)
    for ask in (lambda: first.generate("the capital of land1 is"), lambda: first.edit(fact)):
        with pytest.raises(LedgerError, match="bound to another model since"):
            ask()
    first.undo()


def test_a_handle_redoes_all_and_refuses_what_is_no_question() -> None:
    handle = ToyEditor().edit_model(
        toy_model(),
        toy_tokenizer(),
        [{"prompt": f"the capital of land{i} is", "target": f"city{i}"} for i in (1, 2)],
    )
    before = weights_hash(handle.model)
    handle.undo()
    assert weights_hash(handle.model) != before
    handle.redo()
    assert weights_hash(handle.model) == before
    assert handle.ledger.undone_ids == ()
    for prompt, limit in ((" ", 4), ("the capital", 0)):
        with pytest.raises(DataError):
            handle.generate(prompt, limit)
    with pytest.raises(DataError, match="must be text"):
        require_question(5, 4)
