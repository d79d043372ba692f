"""Gradient checkpointing: the same gradients, with the activations of one pass at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_edit.editors import KE, MEND, InstructEdit
from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from tests.editors.two_stacks import VOCAB, facts, tokenizer
from tests.models.tiny import build_tiny

SMALL: dict[type[HypernetworkEditor], dict[str, Any]] = {
    MEND: {"rank": 8, "step_size": 1e-1},
    InstructEdit: {"rank": 8, "step_size": 1e-1},
    KE: {"hidden": 8, "condition": 16, "max_scale": 10.0},
}
KINDS = ["llama", "opt", "gemma3_text", "t5", "bart"]


def build(kind: str) -> Any:
    return build_tiny(kind, vocab_size=VOCAB).requires_grad_(False)


def step(
    kind: type[HypernetworkEditor], model: Any, rows_per_pass: int | None, **options: Any
) -> tuple[Tensor, list[Tensor], int]:
    """Return logits, gradients of a loss on them, and the bytes that the graph keeps."""
    editor = kind(rows_per_pass=rows_per_pass, **SMALL[kind], **options)
    editor.bind(model, tokenizer())
    requests = facts()
    batch = encode_batch(editor.prompts, requests)
    rows = [(number, (one.prompt_ids, one.target_ids)) for number, one in enumerate(batch.encoded)]
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    read = editor.edited(batch)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        padded, logits = read(rows)
    loss = torch.nn.functional.cross_entropy(logits, padded.targets)
    parameters = [p for p in editor.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return logits.detach(), [g for g in gradients if g is not None], kept


@pytest.mark.parametrize(
    ("kind", "editor", "together"),
    [
        *((kind, MEND, together) for kind in KINDS for together in (True, False)),
        ("llama", InstructEdit, True),
        ("llama", KE, False),
        ("bart", KE, False),
    ],
)
def test_gradients_are_those_of_all_rows_at_once(
    kind: str, editor: type[HypernetworkEditor], together: bool
) -> None:
    model = build(kind)
    before = weights_hash(model)
    options = {} if editor is KE else {"together": together}
    logits, whole, kept = step(editor, model, None, **options)
    again, parts, less = step(editor, model, 2, **options)
    assert torch.allclose(again, logits, rtol=1e-4, atol=1e-5)
    assert len(whole) == len(parts) > 2
    assert any(float(one.norm()) > 1e-4 for one in whole)
    for got, wanted in zip(parts, whole, strict=True):
        assert float((got - wanted).norm()) <= 2e-3 * float(wanted.norm()) + 1e-7
    assert 3 * less < kept
    assert weights_hash(model) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_passes_read_what_one_pass_reads(kind: str) -> None:
    model = build(kind)
    batch = encode_batch(tokenizer(), facts())
    rows = [(one.prompt_ids, one.target_ids) for one in batch.encoded]
    padded = AnswerRows.of(model, rows)
    whole = answer_logits(model, padded)
    for size in (1, 2, 5, 9):
        logits = answer_logits(model, padded, rows_per_pass=size)
        assert torch.allclose(logits, whole, rtol=1e-4, atol=1e-5)
    modules = [block.mlp_down for block in resolve(model).blocks[:2]]
    for each in (True, False):
        loss, factors = token_factors(model, rows, modules, each=each)
        less, parts = token_factors(model, rows, modules, each=each, rows_per_pass=2)
        assert less == pytest.approx(loss, rel=1e-5)
        for name in modules:
            for got, wanted in zip(parts[name], factors[name], strict=True):
                # Padding differs; it has no gradient.
                used = factors[name][1].abs().sum(-1) > 0
                assert got.shape == wanted.shape
                # A value near zero is a sum of others as large as the largest, with their rounding.
                rounding = 2e-6 * float(wanted.abs().max())
                assert torch.allclose(got[used], wanted[used], rtol=1e-3, atol=rounding)


@pytest.mark.parametrize("rows", [0, -1])
def test_at_least_one_row(rows: int) -> None:
    with pytest.raises(ValueError, match="rows_per_pass is 1 or more"):
        MEND(rows_per_pass=rows)
