"""Behind a norm: the solve ends whatever is out of reach; layers reach together what one cannot."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_edit.editors import MEMIT
from lightning_edit.editors.locate import layer_by_layer, multi_layer
from lightning_edit.editors.locate.effect import read_effect
from lightning_edit.editors.locate.layer_by_layer import edit_layer_by_layer, out_of_reach, unlikely
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.prompts import rewriting_texts
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.types import EditBatch, EditRequest
from tests.editors.locate import structures
from tests.models.tiny import build_tokenizer

REQUESTS = [
    EditRequest("0", "The capital of France is", "Rome", "France"),
    EditRequest("1", "Lyon lies in", "Italy", "Lyon"),
]
TOKENIZER = build_tokenizer()
#: The last edited block can add next to nothing, the one below it much.
GAINS = (3.0, 0.05)


def bound(family: str = "gemma3_text", gains: Sequence[float] = (), **own: Any) -> MEMIT:
    """Return a bound editor.

    Args:
        family: Kind of the model.
        gains: What the norms behind the MLPs pass on, by block; empty: as they are.
        own: Arguments of the editor.
    """
    model = copy.deepcopy(structures.build(family))
    for number, gain in enumerate(gains):
        norm = model.get_submodule(f"model.layers.{number}.post_feedforward_layernorm")
        torch.nn.init.constant_(norm.get_parameter("weight"), gain - 1)
    given: dict[str, Any] = {"layers": [0, 1], "statistics": "identity"} | own
    editor = MEMIT(1e-4, context_templates=["{}"], kl_factor=0.0, **given)
    editor.bind(model, TOKENIZER)
    return editor


def test_a_target_that_no_layer_reaches_ends_the_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """One target is out of reach for good while the other is in it: the solve went on for ever."""
    editor = bound(steps=3)
    batch = encode_batch(TOKENIZER, REQUESTS)
    targets = editor.search(batch)
    far = replace(targets, delta=targets.delta * torch.tensor([[1e3], [1.0]]))
    solves: list[int] = []
    once = MultiLayerEditor._solve_once

    def counted(*arguments: Any) -> Any:
        solves.append(1)
        assert len(solves) < 10
        return once(*arguments)

    monkeypatch.setattr(MultiLayerEditor, "_solve_once", counted)
    delta = editor.write(batch, far)
    assert len(solves) > 1
    assert delta.request_ids == ("0", "1")


@pytest.mark.parametrize("single", [False, True])
def test_layers_reach_together_what_the_last_one_cannot(
    single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = bound(gains=GAINS, steps=25)
    batch = encode_batch(TOKENIZER, REQUESTS)
    before = {name: value.clone() for name, value in editor.language_model.state_dict().items()}
    last = edit_last_layer_alone(editor, batch)
    # A random model of two blocks gets no answer likely, but the second less unlikely.
    monkeypatch.setattr(layer_by_layer, "UNLIKELY", 5.3)
    assert out_of_reach(last.info, 25)
    assert unlikely(last.info) == 1
    deltas = editor.edit_independent(batch) if single else [editor.edit(batch)]
    after = editor.language_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert editor.edited_layers == [0, 1]
    assert ["layer_by_layer" in delta.info for delta in deltas] == [False, True][-len(deltas) :]
    info = deltas[-1].info
    assert len(deltas[-1].weights) == len(info["unwritten"]) == len(info["condition"]) == 2
    assert unlikely(info) == 0
    with deltas[-1].applied(editor.language_model):
        _, nll = read_effect(
            editor.view,
            rewriting_texts(editor.prompts, batch.split()[1] if single else batch, ["{}"]),
            editor.site_module,
            512,
        )
    assert nll.tolist() == pytest.approx(info["nll_edited"], abs=1e-3)
    start = last.info["nll_before"][-len(info["nll_edited"]) :]
    assert all(now < then - 0.7 for now, then in zip(info["nll_edited"], start, strict=True))
    assert info["nll_edited"] == pytest.approx(info["nll_searched"], abs=0.01)
    assert min(info["steps"]) > 25
    assert max(info["site_distance"]) < 0.01
    assert info["auto"]["clamp"] == editor.chosen["clamp"]
    assert set(deltas[-1].columns) == set(deltas[-1].weights)


def edit_last_layer_alone(editor: MEMIT, batch: EditBatch) -> Delta:
    """Return the edit as it would be without searches in every layer."""
    return super(MultiLayerEditor, editor)._search_and_write(batch)


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("llama", {"steps": 1}),
        ("gemma3_text", {"steps": 2, "clamp": 0.1}),
        ("gemma3_text", {"steps": 2, "layers": [1]}),
        ("gemma3_text", {"steps": 4, "threshold": 50.0}),  # ends by its own rule
    ],
)
def test_others_are_searched_once(
    family: str, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> Delta:
        raise AssertionError("searched in every layer")

    monkeypatch.setattr(multi_layer, "edit_layer_by_layer", never)
    editor = bound(family, **own)
    delta = editor.edit(encode_batch(TOKENIZER, REQUESTS))
    assert min(delta.info["nll_searched"]) > layer_by_layer.UNLIKELY


def test_a_search_in_every_layer_that_writes_no_more_leaves_no_trace() -> None:
    editor = bound(gains=(1e-3, 1e-3), steps=3)
    delta = editor.edit(encode_batch(TOKENIZER, REQUESTS))
    assert "layer_by_layer" not in delta.info
    assert delta.info["auto"] == editor.chosen


def test_a_failure_leaves_layers_and_weights_as_they_were() -> None:
    editor = bound(steps=2)
    batch = encode_batch(TOKENIZER, REQUESTS)
    before = {name: value.clone() for name, value in editor.language_model.state_dict().items()}
    edited: list[Delta] = []

    def fails_at_the_second(part: EditBatch) -> Delta:
        if edited:
            raise RuntimeError("planted failure")
        edited.append(edit_last_layer_alone(editor, part))
        return edited[0]

    with pytest.raises(RuntimeError, match="planted failure"):
        edit_layer_by_layer(editor, batch, fails_at_the_second)
    after = editor.language_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert editor.edited_layers == [0, 1]
