"""A run folder in Python: the model with its edits, to ask, edit, undo, redo and report."""

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import lightning_edit.editors as editors
from lightning_edit.editors.build import build_editor as build_plain
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import ConfigError, LedgerError
from lightning_edit.models.weights import weights_hash
from lightning_edit.session.describe import describe
from lightning_edit.session.open import EditedRun, build_editor, open_run
from lightning_edit.session.trainer import EditTrainer
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

MORE = {"prompt": "the capital of land90 is", "target": "city3", "subject": "land90"}


def run_toy(run: Path, **options: Any) -> Any:
    edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())
    return edits.edit(editor, ToyData(4), run=str(run), modes=("tf",), **options)


def toy_open(run: Path) -> EditedRun:
    return open_run(run, ToyEditor(), (toy_model(), toy_tokenizer()))


def test_an_opened_run_has_the_weights_of_the_run(tmp_path: Path) -> None:
    results = run_toy(tmp_path)
    opened = toy_open(tmp_path)
    assert weights_hash(opened.model) == weights_hash(results.edited.model)
    assert opened.ids == tuple(f"fact-{i}" for i in range(4))
    assert opened.results == results
    assert opened.generate(MORE["prompt"]) == results.edited.generate(MORE["prompt"])
    assert "reliability" in opened.report().lower()


def test_undo_and_redo_are_written_to_the_run(tmp_path: Path) -> None:
    run_toy(tmp_path)
    pristine = weights_hash(toy_model())
    opened = toy_open(tmp_path)
    whole = weights_hash(opened.model)
    opened.undo("fact-1")
    assert "fact-1" not in toy_open(tmp_path).ids
    assert [entry.ids for entry in Journal(tmp_path / "ledger").undone("user")] == [("fact-1",)]
    again = toy_open(tmp_path).redo("fact-1")
    assert weights_hash(again.model) == whole
    again.undo()
    assert weights_hash(again.model) == weights_hash(toy_open(tmp_path).model) == pristine


def test_further_edits_have_names_of_their_own(tmp_path: Path) -> None:
    run_toy(tmp_path)
    toy_open(tmp_path).edit(MORE).undo("edit-0")
    opened = toy_open(tmp_path).edit(MORE)
    assert opened.ids[-1] == "edit-1"
    assert weights_hash(toy_open(tmp_path).model) == weights_hash(opened.model)


def test_the_results_of_a_run_have_its_model(tmp_path: Path) -> None:
    results = run_toy(tmp_path)
    assert results == json.loads((tmp_path / "results.json").read_text())
    results.edited.undo(["fact-3"])
    assert toy_open(tmp_path).ids == ("fact-0", "fact-1", "fact-2")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no edits"):
        EditedModel.open(tmp_path)
    results = run_toy(tmp_path / "run")
    with pytest.raises(LedgerError, match="give the unedited one"):
        open_run(tmp_path / "run", language_model=(results.edited.model, toy_tokenizer()))
    opened = EditedModel.open(tmp_path / "run", language_model=(toy_model(), toy_tokenizer()))
    with pytest.raises(ConfigError, match="not one of this library"):
        opened.edit(MORE)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"neither config\.yaml nor results\.json"):
        EditedModel.open(tmp_path / "run")


def test_a_second_run_says_what_it_takes_as_pristine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = ToyEditor().bind(toy_model(), toy_tokenizer())

    def edit(name: str) -> Any:
        edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        return edits.edit(editor, ToyData(4), run=str(tmp_path / name), modes=("tf",))

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "pristine one" in r.getMessage()]

    with caplog.at_level(logging.WARNING, logger="lightning_edit"):
        first = edit("one")
        assert not said()
        edit("two").edited.undo()
        (words,) = said()
        assert "holds 4 edits already (fact-0, fact-1, fact-2, fact-3)" in words
        first.edited.undo()
        edit("three")
        assert len(said()) == 1


@pytest.mark.parametrize("name", [n for n in editors.__all__ if n != "Editor"])
def test_an_editor_is_built_again_from_its_record(name: str, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps(MORE) + "\n")
    kind = getattr(editors, name)
    wanted = inspect.signature(kind).parameters
    inner = editors.FT(steps=3) if name == "OneLI" else editors.MEMIT(layers=[1])
    given: dict[str, Any] = {"editor": inner, "facts": str(facts)}
    editor = kind(**{key: value for key, value in given.items() if key in wanted})
    record = json.loads(json.dumps(describe(editor)))
    built = build_editor(record)
    assert type(built) is kind
    assert json.loads(json.dumps(describe(built))) == record


def test_values_that_auto_chose_are_no_arguments(tmp_path: Path) -> None:
    editor = editors.RECT(editors.MEMIT(layers=[1], statistics="identity", steps=2))
    editor.bind(toy_model(), toy_tokenizer())
    editor.edit(encode_batch(toy_tokenizer(), toy_requests(2)))
    record = json.loads(json.dumps(describe(editor)))
    assert record["args"]["editor"]["auto"]["moment_weight"]
    for built in (build_editor(record), build_plain(record)):
        assert isinstance(built, editors.RECT)
        assert isinstance(built.editor, editors.MEMIT)
        assert built.editor.moment_weight == "auto"


def test_a_saved_model_is_loaded_as_in_the_run(tmp_path: Path) -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    from lightning_edit import FTL, load_language_model

    loaded = load_language_model(str(tmp_path / "model"))
    editor = FTL(steps=2).bind(*loaded)
    edits = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)

    class Data(ToyData):
        def load_split(self, split: str) -> Any:
            return toy_requests(2)

    run = tmp_path / "run"
    results = edits.edit(editor, Data(), run=str(run), protocol="batch", modes=("tf",))
    opened = EditedModel.open(run)
    assert isinstance(opened, EditedRun)
    assert weights_hash(opened.model) == weights_hash(results.edited.model)
    opened.edit(MORE)
    assert opened.ids == ("fact-0", "fact-1", "edit-0")
