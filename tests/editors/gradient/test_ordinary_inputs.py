"""Steps of fine-tuning that change what layers put out on ordinary text least."""

from typing import Any

import pytest
import torch

from lightning_edit.editors import FTM, LocFTBF
from lightning_edit.editors.gradient.descent import LONGEST, MeasuredDescent
from lightning_edit.editors.gradient.master_copies import MasterCopies
from lightning_edit.editors.gradient.ordinary_inputs import (
    DIAGONAL,
    FLOOR,
    InputMetric,
    OrdinaryInputs,
)
from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import SolveError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.types import EditRequest
from tests.models.tiny import TINY, build_tokenizer


@pytest.mark.parametrize(("tokens", "width"), [(5, 12), (40, 12)])
def test_woodbury_is_the_inverse(tokens: int, width: int) -> None:
    inputs = torch.randn(tokens, width) * torch.logspace(-1, 1, width)
    moment = inputs.double().mT @ inputs.double() / tokens
    diagonal = torch.diag(moment.diagonal())
    floor = FLOOR * moment.diagonal().mean() * torch.eye(width)
    dense = (1 - DIAGONAL) * moment + DIAGONAL * diagonal + floor
    gradient = torch.randn(3, width)
    wanted = gradient.double() @ torch.linalg.inv(dense)
    found = InputMetric(inputs).direction(gradient)
    assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = torch.tensor([[1.0, float("inf")]])
    with pytest.raises(SolveError, match=r"neutral text is not finite; load .* float32"):
        InputMetric(inputs)


def test_no_direction_changes_ordinary_text_less_for_what_it_takes() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, 8) @ torch.randn(8, 8)
    gradient = torch.randn(4, 8)

    def harm(direction: torch.Tensor) -> float:
        taken = (gradient * direction).sum()
        return float((inputs @ (direction / taken).mT).square().sum())

    steepest = harm(InputMetric(inputs).direction(gradient))
    assert steepest < 0.7 * harm(gradient)
    assert steepest < 0.7 * harm(gradient.sign())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_inputs_are_those_of_the_trained_layer(family: str) -> None:
    model, tokenizer = TINY[family](), build_tokenizer(eos=True)
    editor = FTM(layers=[1]).bind(model, tokenizer)
    weights = editor.trained_weights()
    read = OrdinaryInputs(model, editor.prompts, weights)
    module = weights[0].name.removesuffix(".weight")
    prompts = editor.prompts.prompts(NEUTRAL_TEXTS)
    rows = AnswerRows.of(model, [(ids, ()) for ids in prompts])
    with torch.no_grad(), capture(model, {module: "input"}) as captured:
        model(**rows.inputs, use_cache=False)
    gradient = torch.randn(weights[0].shape)
    stored = gradient.mT if weights[0].transposed else gradient
    found = read.direction(weights[0].name, stored)
    wanted = InputMetric(captured[module][rows.mask]).direction(gradient)
    assert torch.allclose(found.mT if weights[0].transposed else found, wanted)
    bias = torch.randn(4)
    assert read.direction("no.matrix", bias) is bias


@pytest.mark.parametrize("scale", [1e-25, 1.0])
def test_a_loss_that_hardly_slopes_makes_no_endless_step(scale: float) -> None:
    """Of a saturated model the squares of the gradients vanish, and a share of the loss is far."""
    torch.manual_seed(0)
    editor = FTM(layers=[1]).bind(TINY["gpt2"](), build_tokenizer())
    copies = MasterCopies(editor.trained_weights())
    inputs = OrdinaryInputs(editor.language_model, editor.prompts, copies.handles)
    descent = MeasuredDescent(copies, inputs, 0.2, 0.0)
    gradients = [scale * torch.randn_like(value) for value in copies.master]
    descent.take(gradients, 5.0 if scale < 1 else 1e9)

    def size(values: list[torch.Tensor]) -> float:
        pairs = zip(copies.handles, values, strict=True)
        return sum(inputs.size(handle.name, value) for handle, value in pairs)

    moved = [a.detach() - b for a, b in zip(copies.master, copies.start, strict=True)]
    assert size(moved) == pytest.approx(LONGEST**2 * size(copies.start), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_whole_block_is_trained_by_the_rule(family: str) -> None:
    editor: Any = LocFTBF(layers=[1], whole_block=True, end_token=False)
    editor.bind(TINY[family]().requires_grad_(False), build_tokenizer(eos=True))
    facts = [EditRequest("0", "The capital of France is", "Rome", "France")]
    losses = editor.edit(encode_batch(editor.prompts, facts)).info["loss"]
    assert losses[-1] < 0.5 * losses[0]
