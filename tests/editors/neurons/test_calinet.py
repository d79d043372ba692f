"""CaliNET: a batch of facts is trained into one block, blocks stack, and an undo removes one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors.neurons.calinet import CaliNet
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Lyon", "France", rephrases=("Paris? No,",)),
    EditRequest("b", "The capital of Italy is", "Arles", "Italy"),
    EditRequest("c", "Marseille lies in", "Italy", "Marseille"),
]
OTHERS = ["The river Rhône flows through", "Avignon", "What is the mother tongue of Danielle"]
IDS = torch.tensor([[1, 7, 9, 11]])


def bound(family: str = "gpt2", **arguments: Any) -> tuple[CaliNet, Any, Any]:
    model, tokenizer = build_tiny(family).requires_grad_(False), build_tokenizer(bos=True)
    editor = CaliNet(**{"steps": 90, "lr": 1e-2, "threshold": 1e-2} | arguments)
    editor.bind(model, tokenizer)
    return editor, model, tokenizer


def said(editor: CaliNet, in_force: Sequence[Delta], prompts: Sequence[str]) -> list[str]:
    return editor.responder(in_force).generate_until([Question(one, 8) for one in prompts], ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "relu"), ("llama", "gated"), ("opt", "relu"), ("qwen3", "gated")]
)
def test_facts_of_a_batch_are_written_together(family: str, kind: str) -> None:
    editor, model, tokenizer = bound(family, kind=kind)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    assert len(handle.ledger.in_force) == 1
    prompts = [*(one.prompt for one in REQUESTS), *OTHERS]
    together = said(editor, handle.ledger.in_force, prompts)
    for text, request in zip(together, REQUESTS, strict=False):
        assert text.strip().startswith(request.target)
    assert together == [said(editor, handle.ledger.in_force, [one])[0] for one in prompts]
    statements = [Statement(one.prompt, one.target) for one in REQUESTS]
    scores = editor.responder(handle.ledger.in_force).loglikelihood(statements)
    assert all(score.is_greedy for score in scores)
    handle.undo()
    fresh = build_tiny(family)
    assert torch.equal(model(IDS).logits, fresh(IDS).logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]


def test_blocks_in_several_layers_and_behind_a_norm() -> None:
    editor, model, tokenizer = bound("gemma3_text", layers=[1, 2], steps=60)
    handle = editor.edit_model(model, tokenizer, REQUESTS[2])
    assert handle.generate(REQUESTS[2].prompt, 8).strip().startswith("Italy")
    assert len(handle.ledger.in_force[0].state) == 4


@pytest.mark.slow
def test_blocks_stack_and_an_undo_removes_one() -> None:
    editor, model, tokenizer = bound()
    handle = editor.edit_model(model, tokenizer, REQUESTS[0])
    alone = model(IDS).logits
    handle.edit(REQUESTS[2])
    assert handle.generate(REQUESTS[2].prompt, 8).strip().startswith("Italy")
    first, second = handle.ledger.in_force
    both = model(IDS).logits
    handle.undo(second.request_ids)
    assert torch.equal(model(IDS).logits, alone)
    handle.redo(second.request_ids)
    handle.undo(first.request_ids)
    assert not torch.equal(model(IDS).logits, both)
    editor.runtime().install([second])  # what is left is that block alone
    rest = model(IDS).logits
    editor.runtime().install(handle.ledger.in_force)
    assert torch.equal(model(IDS).logits, rest)


def test_a_start_at_zero_leaves_the_model_as_it_was_and_a_random_one_does_not() -> None:
    own = build_tiny("gpt2")(IDS).logits
    for start, same in (("zero", True), ("random", False)):
        editor, model, tokenizer = bound(start=start, threshold=1e9, steps=1)
        delta = editor.edit(encode_batch(tokenizer, REQUESTS))  # stops before the first step
        editor.runtime().install([delta])
        assert torch.equal(model(IDS).logits, own) == same


def test_rephrases_and_context_templates_are_further_inputs() -> None:
    def rows(**arguments: Any) -> int:
        editor, _, tokenizer = bound(**arguments)
        return len(editor._rows(encode_batch(tokenizer, REQUESTS)))

    assert rows() == 3
    assert rows(use_rephrases=True) == 4
    assert rows(context_templates=["Arles. {}", "{}"]) == 6
    assert rows(context_templates=["Arles. {}"], use_rephrases=True) == 8


@pytest.mark.parametrize("layers", [None, [1]])
def test_mini_batches_learn_what_one_batch_does(layers: list[int] | None) -> None:
    editor, model, tokenizer = bound(batch_size=2, layers=layers, steps=60)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    for request in REQUESTS:
        assert handle.generate(request.prompt, 8).strip().startswith(request.target)


def test_saved_blocks_act_as_before(tmp_path: Path) -> None:
    editor, model, tokenizer = bound("llama", kind="gated", steps=10)
    delta = editor.edit(encode_batch(tokenizer, REQUESTS))
    delta.save(tmp_path / "delta.safetensors")
    editor.runtime().install([delta])
    before = model(IDS).logits
    editor.runtime().install([])
    editor.runtime().install([Delta.load(tmp_path / "delta.safetensors")])
    assert torch.equal(model(IDS).logits, before)


def test_wrong_arguments_are_refused() -> None:
    for arguments in ({"width": 0}, {"lr": 0.0}, {"clip": 0.0}, {"steps": 0}):
        with pytest.raises(ConfigError, match="expected width"):
            CaliNet(**arguments)
    with pytest.raises(ValueError, match="context template"):
        CaliNet(context_templates=["no place for a prompt"])
