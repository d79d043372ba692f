"""Edits that are shipped as a folder: loaded on their model, and refused if anything is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lightning_edit
from lightning_edit.editors import GRACE, ICE, MELO
from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import (
    CheckpointError,
    ConfigError,
    ExportError,
    LightningEditError,
    ShippedEditsError,
)
from lightning_edit.export.data_files import hash_files
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.weights import weights_hash
from tests.editors.runtime_toys import Book, Sorter, Told
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import ToyEditor, toy_model, toy_requests, toy_tokenizer

FACTS = toy_requests(3)
EDIT = "edits/000002.safetensors"
PARTS = "parts/parts.safetensors"


def edited_by(editor: Editor) -> Any:
    return editor.edit_model(toy_model(), toy_tokenizer(), FACTS)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "folder"
    return edited_by(Sorter(threshold=0.9).train_on(2)).export(folder)


@pytest.fixture
def folder(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "folder"))


def change(folder: Path, **entries: Any) -> None:
    """Change entries of editor.json; ``None`` removes one."""
    path = folder / "editor.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def index_again(folder: Path) -> None:
    """Give editor.json the hashes of the files as they are now."""
    change(folder, files=hash_files(folder, ("editor.json", "README.md")))


def rewrite(folder: Path, name: str, **tensors: torch.Tensor) -> None:
    from safetensors import safe_open

    path = folder / name
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path) | tensors, path, metadata=header)
    index_again(folder)


def arguments(folder: Path, **given: Any) -> None:
    editor = json.loads((folder / "editor.json").read_text())["editor"]
    change(folder, editor={"class": editor["class"], "args": editor["args"] | given})


def replace_by_link(folder: Path) -> None:
    path = folder / EDIT
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def pickle_parts(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder.parent / "executed"),)

    torch.save({"letters.weight": Trap()}, folder / PARTS)
    index_again(folder)


def other_ids(folder: Path) -> None:
    edits = json.loads((folder / "editor.json").read_text())["edits"]
    edits[1]["ids"] = ["fact-9"]
    change(folder, edits=edits)


def of_model(folder: Path, **entries: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    index_again(folder)


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def lists_file(folder: Path, name: str) -> None:
    files = json.loads((folder / "editor.json").read_text())["files"]
    change(folder, files=files | {name: "0" * 64})


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"editor.json is missing; give a folder that"),
    "edit missing": (lambda f: (f / EDIT).unlink(), rf"{EDIT} is missing"),
    "edit changed": (lambda f: flip(f, EDIT), rf"{EDIT} is not what was exported"),
    "parts changed": (lambda f: flip(f, PARTS), rf"{PARTS} is not what was exported"),
    "requests changed": (lambda f: flip(f, "edits.jsonl"), "edits.jsonl is not what was exported"),
    "model changed": (lambda f: flip(f, "model.json"), "model.json is not what was exported"),
    "a file more": (lambda f: (f / "parts/x.json").write_text("{}"), "x.json does not belong"),
    "code": (lambda f: (f / "parts/x.py").write_text("boom"), "x.py is no plain data file"),
    "a link": (replace_by_link, rf"{EDIT} is no plain data file"),
    "a path upwards": (lambda f: lists_file(f, "../x.json"), r"'../x.json'.*not inside it"),
    "a path upwards inside": (lambda f: lists_file(f, "parts/../../x.json"), "not inside it"),
    "an absolute path": (lambda f: lists_file(f, "/etc/passwd"), r"'/etc/passwd'.*not inside it"),
    "a path of Windows": (lambda f: lists_file(f, "..\\x.json"), "not inside it"),
    "no JSON": (lambda f: (f / "editor.json").write_text("{"), "editor.json is no JSON"),
    "a list": (lambda f: (f / "editor.json").write_text("[]"), "holds a list, no object"),
    "no bytes of text": (lambda f: (f / "editor.json").write_bytes(b"\xff"), "is no JSON"),
    "another format": (
        lambda f: change(f, format="lightning-edit-runtime/9", lightning_edit="7.0"),
        r"expected format lightning-edit-runtime/1, got .*/9' \(written by lightning-edit 7.0\)",
    ),
    "no edits": (lambda f: change(f, edits=None), "`edits`: expected list, got NoneType"),
    "edits of texts": (lambda f: change(f, edits=["x"]), r"`edits\[0\]`: expected dict, got str"),
    "ids of numbers": (
        lambda f: change(f, edits=[{"file": EDIT, "ids": [1]}]),
        r"edits\[0\].ids`: expected str",
    ),
    "a number as hash": (lambda f: change(f, files={EDIT: 1}), "expected str, got int"),
    "no hash": (lambda f: change(f, files={}), "records no hash of 'model.json'"),
    "other ids": (other_ids, r"holds the edits \['fact-1'\], but editor.json lists \['fact-9'\]"),
    "unknown class": (
        lambda f: change(f, editor={"class": "Ghost", "args": {}}, module="ghosts"),
        r"editor Ghost is not one of .* import the module that defines it \(ghosts\) before",
    ),
    "no editor": (
        lambda f: change(f, editor={"class": "Trainer", "args": {}}),
        "editor Trainer is not one of",
    ),
    "dotted class": (
        lambda f: change(f, editor={"class": "os.system", "args": {"command": "x"}}),
        "editor os.system is not one of",
    ),
    "class is a number": (
        lambda f: change(f, editor={"class": 1, "args": {}}),
        "`editor.class`: expected str",
    ),
    "argument of a wrong type": (
        lambda f: arguments(f, threshold="high"),
        "`threshold` of Sorter: expected float, got",
    ),
    "truth as a number": (lambda f: arguments(f, seed=True), "`seed` of Sorter: expected int"),
    "unknown argument": (lambda f: arguments(f, x=1), "Sorter has no argument 'x'; it has: thres"),
    "nested editor in a number": (
        lambda f: arguments(f, seed={"class": "FT", "args": {}}),
        "`seed` of Sorter: expected int",
    ),
    "a class to import": (
        lambda f: arguments(f, seed={"class_path": "os.system", "init_args": {}}),
        "`seed` of Sorter: expected int",
    ),
    "parts that are NaN": (
        lambda f: rewrite(f, PARTS, **{"letters.weight": torch.full((256, 8), torch.nan)}),
        "letters.weight holds NaN",
    ),
    "parts of another shape": (
        lambda f: rewrite(f, PARTS, **{"letters.weight": torch.zeros(2, 8)}),
        r"float32 of shape \(2, 8\), but Sorter expects float32 of shape \(256, 8\)",
    ),
    "parts that are missing": (
        lambda f: ((f / PARTS).unlink(), index_again(f)),
        f"{PARTS} is missing",
    ),
    "parts that are a pickle": (pickle_parts, "is no safetensors file"),
    "an edit that is NaN": (
        lambda f: rewrite(f, EDIT, **{"state/key/fact-1": torch.full((8,), torch.nan).double()}),
        r"key/fact-1 has NaN or infinite entries",
    ),
    "an edit that is none": (
        lambda f: ((f / EDIT).write_bytes(b"x" * 99), index_again(f)),
        "cannot be read as a delta",
    ),
    "requests that are none": (
        lambda f: ((f / "edits.jsonl").write_text('{"id": 3}\n'), index_again(f)),
        "edits.jsonl holds no requests",
    ),
    "bos is a text": (lambda f: of_model(f, bos="no"), "`bos`: expected bool, got str"),
    "prompts of another kind": (lambda f: of_model(f, prompts={"tongue": 1}), "model.json, `prom"),
    "prompts that contradict": (
        lambda f: of_model(f, prompts={"system": "Be brief"}),
        "a system message .* belong to",
    ),
    "another model": (
        lambda f: of_model(f, hash="0" * 64),
        r"is not the one of .*: its weights are other ones .* or allow_other_model=True",
    ),
    "another type": (lambda f: of_model(f, dtype="bfloat16"), "are float32, not bfloat16"),
    "BOS": (lambda f: of_model(f, bos=True), r"without BOS before them, not with \(--lm_bos\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_the_model_stays_as_it_is(case: str, folder: Path) -> None:
    spoil, message = WRONG[case]
    spoil(folder)
    model = toy_model()
    names, before = list(vars(model)), weights_hash(model)
    with pytest.raises(LightningEditError, match=message) as caught:
        lightning_edit.load_edited(folder, model, toy_tokenizer())
    assert isinstance(caught.value, ShippedEditsError | CheckpointError)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "executed").exists()
    assert weights_hash(model) == before
    assert set(vars(model)) - set(names) <= {"_lightning_edit_lock"}


def test_an_intact_folder_is_loaded(folder: Path) -> None:
    loaded = lightning_edit.load_edited(str(folder), toy_model(), toy_tokenizer())
    assert loaded.ledger.request_ids == ("fact-0", "fact-1", "fact-2")
    assert [entry.requests[0]["prompt"] for entry in loaded.ledger.in_force.entries] == [
        fact.prompt for fact in FACTS
    ]
    (folder / "README.md").unlink()  # nobody needs it
    again = lightning_edit.load_edited(folder, toy_model(), toy_tokenizer())
    assert again.export(folder, overwrite=True) == folder


def test_other_weights_are_accepted_on_demand(folder: Path) -> None:
    model = toy_model()
    model.lm_head.weight.data[0] += 1.0
    with pytest.raises(ShippedEditsError, match="its weights are other ones"):
        lightning_edit.load_edited(folder, model, toy_tokenizer())
    loaded = lightning_edit.load_edited(folder, model, toy_tokenizer(), allow_other_model=True)
    assert len(loaded.ledger.request_ids) == 3


def test_names_of_further_edits_are_new(tmp_path: Path) -> None:
    rows = [{"prompt": fact.prompt, "target": fact.target} for fact in FACTS]
    edited = Told("{target} ").edit_model(toy_model(), toy_tokenizer(), rows)
    edited.export(tmp_path / "x")
    loaded = lightning_edit.load_edited(tmp_path / "x", toy_model(), toy_tokenizer())
    more = {"prompt": "the capital of land9 is", "target": "city9"}
    assert loaded.edit(more).ledger.request_ids == ("edit-0", "edit-1", "edit-2", "edit-3")


def test_the_chat_format_comes_back(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    tokenizer.chat_template = turns
    fact = {"prompt": "The capital of France is", "target": "Lyon"}
    edited = Book().edit_model(build_tiny("llama"), tokenizer, fact, chat=True, system="Be brief")
    edited.export(tmp_path / "x")
    loaded = lightning_edit.load_edited(tmp_path / "x", build_tiny("llama"), tokenizer)
    assert loaded.editor.prompts.form == edited.editor.prompts.form
    assert loaded.editor.prompts.form.system == "Be brief"
    assert loaded.generate(fact["prompt"], 4) == edited.generate(fact["prompt"], 4)
    assert "system message 'Be brief'" in (tmp_path / "x" / "README.md").read_text()
    plain = PromptEncoder.of(tokenizer)
    with pytest.raises(ShippedEditsError, match="reads plain text; give the bare tokenizer"):
        lightning_edit.load_edited(tmp_path / "x", build_tiny("llama"), plain)


def test_edits_of_weights_are_shipped_with_their_editor_too(tmp_path: Path) -> None:
    edited = edited_by(ToyEditor())
    before = weights_hash(edited.model)
    edited.export(tmp_path / "x")
    assert weights_hash(edited.model) == before
    assert not (tmp_path / "x" / "parts").exists()
    loaded = lightning_edit.load_edited(tmp_path / "x", toy_model(), toy_tokenizer())
    assert weights_hash(loaded.model) == before
    assert torch.equal(loaded.editor.history, edited.editor.history)  # type: ignore[attr-defined]  # of the toy
    loaded.undo()
    assert weights_hash(loaded.model) == weights_hash(toy_model())


class Coder(Editor):
    """Would ship code."""

    edits_weights = False

    def edit(self, batch: Any) -> Delta:
        return Delta(batch.ids)

    def save_parts(self, folder: Path) -> None:
        (folder / "module.py").write_text("boom")


def test_what_cannot_be_shipped_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ShippedEditsError, match=r"module.py is no plain data file"):
        edited_by(Coder()).export(tmp_path / "x")
    edited = edited_by(Told("{target} "))
    edited.editor.form = torch.zeros(1)
    with pytest.raises(ConfigError, match="argument `form` of Told is a Tensor"):
        edited.export(tmp_path / "x")
    edited.editor.form = "{target} "
    edited.undo()
    with pytest.raises(ExportError, match="no edit is in force"):
        edited.export(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    edited.redo()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(ExportError, match="was not made by"):
        edited.export(tmp_path / "x", overwrite=True)
    assert (tmp_path / "x" / "mine").read_text() == "mine"


def test_the_card_is_what_loads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "README.md").read_text()
    (code,) = [part for part in card.split("```") if part.startswith("python\n")]
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(
        lightning_edit, "load_language_model", lambda name: (toy_model(), toy_tokenizer()), False
    )
    # The package's own name first: it is read from the module, and put back as it was read.
    monkeypatch.setattr(lightning_edit.models.loading, "load_language_model", None)
    names: dict[str, Any] = {}
    exec(compile(code.removeprefix("python\n"), "README.md", "exec"), names)
    assert names["edited"].ledger.request_ids == ("fact-0", "fact-1", "fact-2")
    assert "import tests.editors.runtime_toys" in code
    assert "no code and no pickle" in card


def test_an_update_that_was_made_elsewhere_is_shipped_and_loaded(tmp_path: Path) -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    tuned = build_tiny("llama")
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in tuned.model.layers:  # type: ignore[union-attr]  # a module list
            layer.mlp.down_proj.weight += torch.randn_like(layer.mlp.down_proj.weight)  # type: ignore[union-attr]  # modules
    edited = lightning_edit.EditedModel.of(model, tokenizer)
    edited.commit(Delta.between(build_tiny("llama"), tuned))
    edited.export(tmp_path / "out")
    again = lightning_edit.load_edited(tmp_path / "out", build_tiny("llama"), tokenizer)
    assert weights_hash(again.model) == weights_hash(edited.model) == weights_hash(tuned)
    again.undo()
    assert weights_hash(again.model) == weights_hash(build_tiny("llama"))


def frozen(family: str, **changes: Any) -> Any:
    return build_tiny(family, **changes).requires_grad_(False)


@pytest.mark.parametrize("editor", [GRACE(layer=1, steps=3), MELO(0, layers=[1], rank=2, steps=3)])
def test_tensors_of_edits_need_the_architecture_and_sizes_of_their_model(
    editor: Editor, tmp_path: Path
) -> None:
    tokenizer, fact = build_tokenizer(), {"prompt": "The capital of France is", "target": "Lyon"}
    folder = editor.edit_model(frozen("llama"), tokenizer, fact).export(tmp_path / "x")
    for other in (frozen("gpt2"), frozen("llama", hidden_size=64)):
        before = weights_hash(other)
        with pytest.raises(ShippedEditsError, match="of another architecture or size") as caught:
            lightning_edit.load_edited(folder, other, tokenizer, allow_other_model=True)
        assert "\n" not in str(caught.value)
        assert weights_hash(other) == before
    tuned = frozen("llama", seed=1)
    tuned.resize_token_embeddings(104, mean_resizing=False)
    loaded = lightning_edit.load_edited(folder, tuned, tokenizer, allow_other_model=True)
    assert loaded.ledger.request_ids == ("edit-0",)


def test_texts_fit_a_model_of_another_architecture(tmp_path: Path) -> None:
    tokenizer, fact = build_tokenizer(), {"prompt": "The capital of France is", "target": "Lyon"}
    folder = ICE().edit_model(frozen("llama"), tokenizer, fact).export(tmp_path / "x")
    loaded = lightning_edit.load_edited(folder, frozen("gpt2"), tokenizer, allow_other_model=True)
    told = loaded.editor.told_prompt("Hello")  # type: ignore[attr-defined]
    assert told == "Imagine that The capital of France is Lyon\nHello"
