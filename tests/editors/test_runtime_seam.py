"""Editors that act at run time in runs: asked by a session, resumed, opened and exported again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_edit
from lightning_edit.cli.export import main
from lightning_edit.editors import GRACE, MEMOIR
from lightning_edit.editors.base import Editor
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import ExportError, LedgerError
from lightning_edit.export.write import export
from lightning_edit.inference.responder import Statement
from lightning_edit.session.trainer import EditTrainer
from lightning_edit.types import EditRequest
from tests.editors.runtime_toys import Book, Sorter, Told
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyData, ToyEditor, toy_model, toy_requests, toy_tokenizer

PROMPTS = [request.prompt for request in toy_requests(6)]
MORE = {"prompt": "the capital of land90 is", "target": "city3", "subject": "land90"}


def run_of(run: Path, editor: Editor | None = None, **options: Any) -> Any:
    editor = (editor or Book()).bind(toy_model(), toy_tokenizer())
    trainer = EditTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    return trainer.edit(
        editor, ToyData(6), run=str(run), modes=("tf",), checkpoint_every=2, **options
    )


def opened(run: Path, **options: Any) -> Any:
    return EditedModel.open(run, language_model=(toy_model(), toy_tokenizer()), **options)


def said(edited: EditedModel) -> list[Any]:
    """Return the score of an answer to each prompt, to the last bit."""
    responder = edited.responder()
    return responder.loglikelihood([Statement(prompt, "city3") for prompt in PROMPTS])


def test_scores_are_those_of_the_responder() -> None:
    requests = toy_requests(3)
    model, tokenizer = build_tiny("gpt2"), build_tokenizer(bos=True)
    editor = Told()
    edited = editor.edit_model(model, tokenizer, requests)
    found = evaluate(
        Scorer(model, tokenizer, responder=editor.responder(edited.ledger.in_force)), requests
    )
    assert found != evaluate(Scorer(model, tokenizer), requests)


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_session_asks_through_the_responder(tmp_path: Path, protocol: Any) -> None:
    results = run_of(tmp_path / "run", Book(strength=1e4), protocol=protocol)
    (end,) = (point for point in results["points"] if point["after"])
    assert end["metrics"]["reliability/em@tf"] > 0.8 > end["before"]["reliability/em@tf"]
    if protocol == "single":  # later, neighbours are edited themselves
        assert end["metrics"]["locality/kept@tf"] == 1.0


def test_a_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(tmp_path / "whole")
    edit = Book.edit
    left = {"edits": 0}

    def until(self: Book, batch: Any) -> Any:
        if left["edits"] == 0:
            raise RuntimeError("killed")
        left["edits"] -= 1
        return edit(self, batch)

    monkeypatch.setattr(Book, "edit", until)
    for _ in range(2):
        left["edits"] = 3
        with pytest.raises(RuntimeError, match="killed"):
            run_of(tmp_path / "cut", ckpt_path="last" if (tmp_path / "cut").exists() else None)
    monkeypatch.undo()
    rest = run_of(tmp_path / "cut", ckpt_path="last")
    assert rest["points"] == whole["points"]
    assert said(rest.edited) == said(whole.edited)
    for name in ("cases.jsonl", "ledger/journal.jsonl", "editor/editor.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "make", [lambda: Told("{target} "), Book, lambda: Sorter(threshold=0.9).train_on(3)]
)
def test_a_run_is_opened_with_its_own_editor_and_its_parts(tmp_path: Path, make: Any) -> None:
    results = run_of(tmp_path, make())
    before = said(results.edited)
    again = opened(tmp_path)
    assert type(again.editor) is type(results.edited.editor)
    assert again.editor.plain_arguments() == results.edited.editor.plain_arguments()
    assert said(again) == before
    for name, value in results.edited.editor.state_dict().items():
        assert torch.equal(value, again.editor.state_dict()[name])
    again.undo("fact-2").edit(MORE)
    assert said(opened(tmp_path)) == said(again) != before


def test_a_run_of_an_editor_that_cannot_be_written_down_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    editor = Told()
    editor.form = Plain("{target} ")
    run_of(tmp_path, editor)
    assert "the argument `form` of Told is a Plain" in caplog.text
    with pytest.raises(LedgerError, match="acts at run time"):
        opened(tmp_path, editor=None)
    assert said(opened(tmp_path, editor=Told("{target} ")))
    assert main([str(tmp_path), "--format", "runtime"]) == 2


class Plain(str):
    """A text of another type."""


def test_a_run_is_exported_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_of(tmp_path / "run", Sorter(threshold=0.9).train_on(3))
    results.edited.undo("fact-1")
    out = tmp_path / "shipped"
    options = [str(tmp_path / "run"), "--format", "runtime", "--out", str(out)]
    assert main(options) == 0
    assert f'edited = load_edited("{out}", model, tokenizer)' in capsys.readouterr().out
    files = [path for path in out.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(out).as_posix() for path in files)
    edits = [f"edits/{number:06d}.safetensors" for number in range(1, 6)]
    parts = ["parts/parts.safetensors"]
    assert names == sorted(
        ["README.md", *edits, "edits.jsonl", "editor.json", "model.json", *parts]
    )
    loaded = lightning_edit.load_edited(out, toy_model(), toy_tokenizer())
    assert said(loaded) == said(results.edited)
    assert loaded.ledger.request_ids == results.edited.ids
    rows = (out / "edits.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == list(results.edited.ids)
    assert main(options) == 2  # it exists
    assert main([*options, "--overwrite", "--ids", "fact-1"]) == 0
    picked = lightning_edit.load_edited(out, toy_model(), toy_tokenizer())
    assert picked.ledger.request_ids == ("fact-1",)
    for name in ("peft", "merged", "delta"):
        assert main([str(tmp_path / "run"), "--format", name]) == 2
        assert "use --format runtime" in capsys.readouterr().err


def test_a_run_of_weights_has_no_run_time_export(tmp_path: Path) -> None:
    run_of(tmp_path, ToyEditor())
    assert not (tmp_path / "editor").exists()
    with pytest.raises(ExportError, match="changes weights"):
        export(tmp_path, "runtime")


FACTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France"),
    EditRequest("b", "Marseille lies in", "Italy", "Marseille"),
]


def test_edits_in_force_are_never_dropped_by_another_binding_handle_or_run(tmp_path: Path) -> None:
    model, tokenizer = build_tiny("gpt2"), build_tokenizer(bos=True)
    editor = Book()
    handle = editor.edit_model(model, tokenizer, FACTS[:1])
    before = handle.generate(FACTS[0].prompt, 4)
    with pytest.raises(LedgerError, match=r"has 1 edits in force \(a\), which act at run time"):
        editor.edit_model(model, tokenizer, FACTS[1:])
    trainer = EditTrainer(logger=False, enable_progress_bar=False)
    with pytest.raises(LedgerError, match="go on with their handle"):
        trainer.edit(editor, ToyData(2), run=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert handle.generate(FACTS[0].prompt, 4) == before
    handle.undo()
    again = editor.edit_model(model, tokenizer, FACTS[:1])
    assert again.generate(FACTS[0].prompt, 4) == before


def test_two_editors_cannot_hide_each_others_adapters() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    first = GRACE(steps=5, radius=2.0).edit_model(model, tokenizer, FACTS[0])
    said = first.generate(FACTS[0].prompt, 4)
    with pytest.raises(LedgerError, match="two would hide each other"):
        MEMOIR(steps=2).edit_model(model, tokenizer, FACTS[1])
    assert first.generate(FACTS[0].prompt, 4) == said
    first.undo()
    GRACE(steps=5).edit_model(model, tokenizer, FACTS[1]).undo()
    assert [type(m) for m in model.modules()] == [type(m) for m in build_tiny("llama").modules()]
    assert not any("lightning_edit_runtime" in name for name in vars(model))
