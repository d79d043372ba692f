"""Answers behind prompts: their logits, gradients by factors, and rows under edits of their own."""

import pytest
import torch

from lightning_edit.editors.hypernetwork.functional_weights import stacked_factors
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits, answer_logits_each
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight
from tests.models.tiny import build_tiny


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_factors_multiply_to_the_gradient(family: str) -> None:
    model = build_tiny(family)
    rows = [([3, 4, 5], [6, 7]), ([8, 9], [10])]
    view = resolve(model)
    modules = [view.block(1).mlp_up[0], view.block(1).mlp_down]
    logits = answer_logits(model, AnswerRows.pad(rows))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([6, 7, 10]))
    handles = [weight(model, f"{module}.weight") for module in modules]
    gradients = torch.autograd.grad(loss, [handle.raw() for handle in handles])
    model.requires_grad_(False)
    with torch.inference_mode():  # as in Trainer.validate
        value, factors = token_factors(model, rows, modules)
    assert value == pytest.approx(loss.item())
    for handle, module, gradient in zip(handles, modules, gradients, strict=True):
        inputs, deltas = factors[module]
        wanted = gradient.mT if handle.transposed else gradient
        product = deltas.flatten(0, 1).mT @ inputs.flatten(0, 1)
        torch.testing.assert_close(product, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_each_row_sees_its_own_edit(family: str) -> None:
    model = build_tiny(family)
    modules = [resolve(model).block(1).mlp_up[0], resolve(model).block(2).mlp_down]
    rows = [([3, 4, 5], [6, 7]), ([8], [10]), ([11, 12], [13]), ([3, 4, 5], [6])]
    handles = [weight(model, f"{module}.weight") for module in modules]
    torch.manual_seed(0)
    deltas = [
        Delta(
            (str(rank),),
            {
                handle.name: LowRank(
                    torch.randn(handle.shape[0], rank), torch.randn(rank, handle.shape[1])
                )
                for handle in handles
            },
        )
        for rank in (1, 3)
    ]
    changes = stacked_factors(handles, deltas)
    batch = AnswerRows.pad(rows)
    with torch.no_grad():
        got = answer_logits_each(model, batch, changes, torch.tensor([0, 1, 0, 1]))
        for edit, delta in enumerate(deltas):
            with delta.applied(model):
                wanted = answer_logits(model, batch)
            mine = batch.rows % 2 == edit
            torch.testing.assert_close(got[mine], wanted[mine], rtol=1e-3, atol=1e-3)


def test_rows_of_unlike_length_run_apart_and_come_back_in_order() -> None:
    model = build_tiny("gpt2")
    long, short = list(range(3, 43)), [3, 4]
    rows = [(short, [5, 6]), (long, [7]), (short, [8]), ([9], [10, 11]), (long, [12, 13])]
    batch = AnswerRows.pad(rows)
    assert [len(part) for _, part, _ in batch.buckets()] == [3, 2]
    assert len(AnswerRows.pad(rows[:1] * 3).buckets()) == 1
    name = resolve(model).block(1).mlp_down
    d_out, d_in = weight(model, f"{name}.weight").shape
    changes = {name: (torch.ones(5, d_out, 1), torch.arange(5.0).view(5, 1, 1).expand(5, 1, d_in))}
    with torch.no_grad():
        alone = [answer_logits(model, AnswerRows.pad([row])) for row in rows]
        torch.testing.assert_close(answer_logits(model, batch), torch.cat(alone))
        edits = torch.arange(5)
        alone = [
            answer_logits_each(model, AnswerRows.pad([row]), changes, edits[number : number + 1])
            for number, row in enumerate(rows)
        ]
        each = answer_logits_each(model, batch, changes, edits)
        torch.testing.assert_close(each, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_a_request_without_old_answer_is_read_after_its_prompt() -> None:
    batch = AnswerRows.pad([([5, 6], ()), ([7], [8, 9])])
    assert batch.ids.tolist() == [[5, 6], [7, 8]]
    assert batch.positions.tolist() == [1, 0, 1]
    assert batch.targets.tolist() == [-100, 8, 9]
    with pytest.raises(ValueError, match="at least one token"):
        AnswerRows.pad([((), [1])])
