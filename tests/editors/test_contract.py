"""What every editor promises, checked for each one that is importable."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_edit.editors
from lightning_edit.cli.doctor_auto import auto_settings
from lightning_edit.editors import RAG, CaliNet, Editor
from lightning_edit.editors.arguments import kept_values
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import NotBoundError, SubjectNotFoundError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditBatch, EditRequest, Probe
from tests.models.tiny import TINY, build_tokenizer

#: Values that keep tiny models quick, for editors that have such an argument.
SMALL = {
    "statistics": "identity",
    "steps": 6,
    "memory_tokens": 300,
    "rank": 4,
    "moment_weight": 20.0,
    "eta": 1.0,
    "facts": [EditRequest("fact", "The capital of Italy is", "Rome", "Italy")],
    "demonstrations": [
        EditRequest(
            "demo",
            "Lyon lies in",
            "Italy",
            rephrases=("Lyon is in",),
            probes=(Probe.of("neighborhood", "Arles lies in", "France"),),
        )
    ],
}
REQUESTS = [
    EditRequest("a", "The capital of France is", "Rome", "France"),
    EditRequest("b", "The mother tongue of Danielle Darrieux is", "Paris", "Danielle Darrieux"),
]


def finals(base: type[Editor] = Editor) -> Iterator[type[Editor]]:
    for child in base.__subclasses__():
        yield from finals(child)
        if not child._family and child.__module__.startswith("lightning_edit."):
            yield child


EDITORS = sorted(finals(), key=lambda editor: editor.__name__)
FAMILIES = ("gpt2", "llama")


def make(editor_class: type[Editor]) -> Editor:
    known = {name for base in editor_class.__mro__ for name in inspect.signature(base).parameters}
    arguments: dict[str, Any] = {name: SMALL[name] for name in SMALL if name in known}
    if editor_class is CaliNet:
        arguments["lr"] = (
            1e-2  # by its rule a few steps move a tiny model too little to be told apart
        )
    if issubclass(editor_class, WrappedEditor):
        arguments["editor"] = make(editor_class.default_host)
    return editor_class(**arguments)


@dataclass(frozen=True)
class Case:
    model: Any
    editor: Editor
    batch: EditBatch
    before: str

    @property
    def first(self) -> EditBatch:
        return self.batch.split()[0]


def case(editor_class: type[Editor], family: str, dtype: torch.dtype = torch.float32) -> Case:
    return _case(editor_class, family, dtype)


# The caches tell calls apart by how they are written, so that defaults are filled in before.
@cache
def _case(editor_class: type[Editor], family: str, dtype: torch.dtype) -> Case:
    model = TINY[family]().to(dtype).requires_grad_(False)
    tokenizer = build_tokenizer(bos=family == "llama")
    before = weights_hash(model)
    editor = make(editor_class).bind(model, tokenizer).eval()
    return Case(model, editor, encode_batch(tokenizer, REQUESTS, seed=3), before)


def edited(editor_class: type[Editor], family: str, dtype: torch.dtype = torch.float32) -> Delta:
    return _edited(editor_class, family, dtype)


@cache
def _edited(editor_class: type[Editor], family: str, dtype: torch.dtype) -> Delta:
    own = case(editor_class, family, dtype)
    return own.editor.edit(own.first)


def same(one: Delta, other: Delta, tolerance: float = 0.0) -> bool:
    if one.weights.keys() != other.weights.keys() or one.state.keys() != other.state.keys():
        return False
    if one.prompts != other.prompts:
        return False
    pairs = [(one.weights[name].dense(), other.weights[name].dense()) for name in one.weights]
    pairs += [(one.state[name].double(), other.state[name].double()) for name in one.state]
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return all((a - b).norm() <= tolerance * b.norm() for a, b in pairs)


#: The first architecture is tested by default, others are slow tests.
every = pytest.mark.parametrize(
    "family", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])]
)
#: By default one architecture in one number format.
typed = pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, marks=marks, id=f"{family}-{str(dtype).removeprefix('torch.')}")
        for family, dtype, marks in [
            ("gpt2", torch.float32, []),
            ("llama", torch.bfloat16, [pytest.mark.slow]),
            ("gpt2", torch.bfloat16, [pytest.mark.slow]),
            ("llama", torch.float32, [pytest.mark.slow]),
        ]
    ],
)
each = pytest.mark.parametrize("editor_class", EDITORS, ids=lambda editor: editor.__name__)


def test_every_public_editor_is_here() -> None:
    public = {getattr(lightning_edit.editors, name) for name in lightning_edit.editors.__all__}
    assert public - {Editor} == set(EDITORS)


@each
@typed
def test_edit_leaves_the_model_bit_identical(
    editor_class: type[Editor], family: str, dtype: torch.dtype
) -> None:
    own, delta = case(editor_class, family, dtype), edited(editor_class, family, dtype)
    assert not delta.is_empty
    assert delta.not_finite() == []
    assert weights_hash(own.model) == own.before
    assert all(parameter.grad is None for parameter in own.model.parameters())
    assert not any(module._forward_hooks for module in own.model.modules())
    assert not any("forward" in module.__dict__ for module in own.model.modules())


@each
@typed
def test_applied_changes_the_model_and_restores_every_bit(
    editor_class: type[Editor], family: str, dtype: torch.dtype
) -> None:
    own, delta = case(editor_class, family, dtype), edited(editor_class, family, dtype)
    if not editor_class.edits_weights:
        pytest.skip("acts at run time")
    # An untrained hypernetwork proposes next to nothing, which bfloat16 rounds away.
    visible = dtype == torch.float32 or not editor_class.needs_fit
    with delta.applied(own.model):
        assert (weights_hash(own.model) != own.before) or not visible
    assert weights_hash(own.model) == own.before


@each
@every
def test_delta_is_of_the_declared_kind(editor_class: type[Editor], family: str) -> None:
    own, delta = case(editor_class, family), edited(editor_class, family)
    assert delta.request_ids == ("a",)
    shapes = dict(own.model.named_parameters())
    assert set(delta.weights) <= set(shapes)
    assert bool(delta.weights) == editor_class.edits_weights
    layers = editor_class.default_layers(own.editor.view.num_blocks)
    blocks = tuple(own.editor.view.block(layer).name + "." for layer in layers)
    assert all(name.startswith(blocks) for name in delta.weights)


@pytest.mark.slow
@each
@every
def test_no_layers_means_those_that_it_says(editor_class: type[Editor], family: str) -> None:
    """`sweep` and `tune` give `layers` a value: the first one must be what the editor does."""
    own, editor = case(editor_class, family), make(editor_class)
    if not hasattr(editor, "layers") or editor_class.needs_fit:
        pytest.skip("has no layers to give, or networks that are drawn for them")
    editor.layers = editor_class.layers_for_null(own.editor.view.num_blocks)
    found = editor.bind(own.model, own.editor.tokenizer).eval().edit(own.first)
    assert same(found, edited(editor_class, family))


@each
def test_an_edit_says_what_auto_was(editor_class: type[Editor]) -> None:
    own, delta = case(editor_class, "gpt2"), edited(editor_class, "gpt2")
    kept = kept_values(own.editor)
    ruled = {name for name in auto_settings(editor_class) if kept[name] == "auto"}
    # Without key statistics every direction is free; RAG finds its threshold when it is asked.
    ruled -= {"null_threshold"} | ({"threshold"} if editor_class is RAG else set())
    assert ruled <= set(delta.info.get("auto", {}))


@each
@every
def test_same_seed_gives_the_same_delta(editor_class: type[Editor], family: str) -> None:
    _case.cache_clear()
    again = case(editor_class, family)
    assert same(again.editor.edit(again.first), edited(editor_class, family))


@pytest.mark.slow
@each
@every
def test_another_request_gives_another_delta(editor_class: type[Editor], family: str) -> None:
    own = case(editor_class, family)
    other = own.editor.edit(own.batch.split()[1])
    assert not same(other, edited(editor_class, family), 0.1)


@pytest.mark.slow
@each
@every
def test_independent_edits_equal_edits_alone(editor_class: type[Editor], family: str) -> None:
    own = case(editor_class, family)
    found = own.editor.edit_independent(own.batch)
    assert [delta.request_ids for delta in found] == [("a",), ("b",)]
    alone = [own.editor.edit(part) for part in own.batch.split()]
    assert all(same(one, other, 1e-3) for one, other in zip(found, alone, strict=True))
    assert weights_hash(own.model) == own.before


@each
def test_a_model_in_training_is_edited_as_it_answers(editor_class: type[Editor]) -> None:
    """With its dropout on it would learn an answer that it does not give in use."""
    model = TINY["gpt2"]().requires_grad_(False).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    modes = [module.training for module in model.modules()]
    editor = make(editor_class).bind(model, build_tokenizer()).eval()
    batch = encode_batch(editor.tokenizer, REQUESTS, seed=3)
    assert same(editor.edit(batch.split()[0]), edited(editor_class, "gpt2"))
    (alone,) = editor.edit_independent(batch.split()[0])
    assert same(alone, edited(editor_class, "gpt2"), 1e-3)
    assert [module.training for module in model.modules()] == modes


@each
def test_a_batch_is_one_delta(editor_class: type[Editor]) -> None:
    own = case(editor_class, "gpt2")
    delta = own.editor.edit(own.batch)
    assert delta.request_ids == ("a", "b")
    assert delta.not_finite() == []
    assert weights_hash(own.model) == own.before


@each
def test_saved_deltas_load_equal(editor_class: type[Editor], tmp_path: Path) -> None:
    delta = edited(editor_class, "gpt2")
    delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert same(loaded, delta)
    assert (loaded.request_ids, loaded.prompts) == (delta.request_ids, dict(delta.prompts))


@pytest.mark.slow
@each
def test_edits_where_gradients_are_off(editor_class: type[Editor]) -> None:
    own = case(editor_class, "gpt2")
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert same(own.editor.edit(own.first), edited(editor_class, "gpt2"), 1e-5)
            assert len(own.editor.edit_independent(own.batch)) == 2


@each
def test_asks_for_what_it_needs(editor_class: type[Editor]) -> None:
    own = case(editor_class, "gpt2")
    with pytest.raises(NotBoundError, match="bind"):
        make(editor_class).edit(own.batch)
    if editor_class.needs_subject:
        nameless = [EditRequest("c", "The capital of France is", "Rome")]
        with pytest.raises(SubjectNotFoundError, match="add `subject`"):
            own.editor.edit(encode_batch(own.editor.tokenizer, nameless))


@each
def test_defaults_fit_models_of_any_depth(editor_class: type[Editor]) -> None:
    for blocks in (1, 2, 3, 6, 12, 28, 32, 48, 80):
        layers = editor_class.default_layers(blocks)
        assert layers == sorted(set(layers))
        assert all(0 <= layer < blocks for layer in layers)
