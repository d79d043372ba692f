"""Arguments of editors as plain values, and their learned parts as files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_edit import editors
from lightning_edit.editors.arguments import REQUEST
from lightning_edit.editors.base import Editor
from lightning_edit.editors.parts import PARTS
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import CheckpointError, ConfigError
from lightning_edit.types import EditBatch, EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [EditRequest("a", "The capital of France is", "Lyon", "France")]
CHANGED: dict[str, dict[str, Any]] = {
    "ENCORE": {"patience": 7, "layers": [0, 1], "clamp": 0.25},
    "PMET": {"ease": 0.3, "calm": 0.2, "steps": 3},
    "KN": {"steps": 5, "variant": "easyedit", "layers": [1]},
    "UltraEdit": {"modules": ["transformer.h.0.mlp.c_proj"]},
    "MEND": {"modules": ["transformer.h.0.mlp.c_proj"], "rank": 3, "lr": 0.5},
    "MEMIT": {"context_templates": ["{}", "Well, {}"], "steps": 4, "seed": 3},
    "SIR": {"facts": FACTS, "candidates": 9},
}


class Learner(Editor):
    """Owns a layer and a buffer."""

    edits_weights = False

    def __init__(self, width: int = 2, editor: Editor | None = None, note: Any = "") -> None:
        super().__init__()
        self.width = width
        self.note = note
        self.editor = editor
        self.layer = nn.Linear(width, 2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def edit(self, batch: EditBatch) -> Delta:
        return Delta(batch.ids)


def build(described: dict[str, Any]) -> Any:
    """Build a thing from its description, without the library's own way."""

    def value(one: Any) -> Any:
        if isinstance(one, list):
            return [value(item) for item in one]
        return build(one) if isinstance(one, dict) else one

    if described["class"] == REQUEST:
        return EditRequest.from_dict(described["args"])
    return getattr(editors, described["class"])(
        **{name: value(one) for name, one in described["args"].items()}
    )


@pytest.mark.parametrize("name", [name for name in editors.__all__ if name != "Editor"])
def test_every_editor_can_be_written_down_and_built_again(name: str) -> None:
    given = CHANGED.get(name, {})
    found = getattr(editors, name)(**given).plain_arguments()
    assert found["class"] == name
    expected = given | (
        {"facts": [{"class": REQUEST, "args": FACTS[0].to_dict()}]} if name == "SIR" else {}
    )
    assert {key: found["args"][key] for key in expected} == expected
    again = build(json.loads(json.dumps(found)))
    assert again.plain_arguments() == found


def test_nested_editors_are_part_of_the_arguments_and_paths_of_parameters_are_not() -> None:
    found = Learner(3, Learner(4), note=["ü", {"k": None}]).plain_arguments()
    inner = {"class": "Learner", "args": {"width": 4, "editor": None, "note": ""}}
    assert found["args"] == {"width": 3, "editor": inner, "note": ["ü", {"k": None}]}
    assert (
        editors.MEND(checkpoint="/somewhere/x.ckpt").plain_arguments()["args"]["checkpoint"] is None
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.zeros(2), "Tensor"),
        (print, "builtin_function_or_method"),
        (nn.Linear(1, 1), "Linear"),
        (float("nan"), "nan"),
        ([1, {2: 3}], "item 1 is a dict"),
        ({"k": [object()]}, "entry 'k', item 0 is a object"),
    ],
)
def test_a_value_that_is_not_plain_names_its_argument(value: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"argument `note` of Learner.*{kind}"):
        Learner(editor=Learner(note=value)).plain_arguments()


def test_an_argument_that_is_not_kept_is_named() -> None:
    class Forgetful(Editor):
        def __init__(self, size: int = 1) -> None:
            super().__init__()

        def edit(self, batch: EditBatch) -> Delta:
            return Delta(batch.ids)

    with pytest.raises(ConfigError, match="does not keep its argument `size`"):
        Forgetful().plain_arguments()


def test_parts_are_the_same_after_a_save_and_a_load(tmp_path: Path) -> None:
    one, other = Learner(3, Learner(4)), Learner(3, Learner(4))
    one.seen += 5
    one.save_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PARTS]
    other.load_parts(tmp_path)
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_an_editor_without_parts_writes_nothing_and_keeps_its_run_state_out(tmp_path: Path) -> None:
    editor = editors.MEMIT(layers=[0], statistics="identity", context_templates=["{}"])
    editor.bind(build_tiny("gpt2"), build_tokenizer(bos=True))
    assert editor.state_dict()  # context templates, for a resume
    editor.save_parts(tmp_path)
    assert not list(tmp_path.iterdir())
    editor.load_parts(tmp_path)


def test_parts_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    def refuses(message: str, editor: Learner) -> None:
        before = {name: value.clone() for name, value in editor.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            editor.load_parts(tmp_path)
        assert all(torch.equal(before[name], v) for name, v in editor.state_dict().items())

    path = tmp_path / PARTS
    refuses("is missing", Learner())
    Learner(3).save_parts(tmp_path)
    refuses(r"layer.weight is float32 of shape \(2, 3\), but Learner expects .*\(2, 2\)", Learner())
    refuses("misses editor.layer", Learner(3, Learner(4)))
    refuses(r"float32.*expects float64", Learner(3).double())
    Learner(3, Learner(4)).save_parts(tmp_path)
    refuses("is not of this Learner: it has editor.layer", Learner(3))
    broken = Learner(3)
    broken.layer.weight.data[0, 0] = torch.nan
    broken.save_parts(tmp_path)
    refuses("layer.weight holds NaN", Learner(3))
    save_file({"x": torch.zeros(1)}, path)
    refuses("expected format lightning-edit-parts/1, got none", Learner(3))
    path.write_bytes(b"not a file of tensors")
    refuses("is no safetensors file", Learner(3))
