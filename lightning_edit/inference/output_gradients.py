"""Gradients of an answer's log-probability and logit by the outputs of linear layers.

Unlike :mod:`~lightning_edit.inference.answer_gradients`, at every position and of every row alone:
what a change of a layer's output at any token does to the answer, to first order.

Axis names: ``t`` -- positions of a row (a prompt with its answer); ``d_in``/``d_out`` -- width of a
layer's input and output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.hooks import record_factors
from lightning_edit.inference.model_call import telling


@dataclass(frozen=True)
class LayerGradients:
    """Inputs of a linear layer at the positions of one row, and gradients by its output there.

    Args:
        inputs: Inputs, in float64.
        log_prob: Gradient of the answer's log-probability, in float64.
        logit: Gradient of the logit of the answer's first token, in float64.
    """

    inputs: Float[Tensor, "t d_in"]
    log_prob: Float[Tensor, "t d_out"]
    logit: Float[Tensor, "t d_out"]


@dataclass(frozen=True)
class RowGradients:
    """Scores of one answer, and their gradients by the outputs of linear layers.

    Args:
        log_prob: Log-probability of the whole answer, in nats.
        logit: Logit of its first token.
        layers: By dotted name of the layer.
    """

    log_prob: float
    logit: float
    layers: dict[str, LayerGradients]


def output_gradients(
    model: nn.Module, rows: Sequence[AnswerRow], modules: Sequence[str], rows_per_pass: int = 16
) -> list[RowGradients]:
    """Return each answer's scores and their gradients by the outputs of linear layers.

    One forward and two backward passes for up to ``rows_per_pass`` answers. Weights may be frozen.

    Args:
        model: A Hugging Face language model, of one stack or two.
        rows: Token ids of prompts and answers, none of them empty.
        modules: Dotted names of linear layers, with two stacks of either.
        rows_per_pass: Maximum number of rows in a pass; bounds memory, changes no result.
    """
    found: list[RowGradients] = []
    with torch.inference_mode(False), evaluating(model), torch.enable_grad():
        for start in range(0, len(rows), rows_per_pass):
            found += _one_pass(model, rows[start : start + rows_per_pass], modules)
    return found


def _one_pass(
    model: nn.Module, rows: Sequence[AnswerRow], modules: Sequence[str]
) -> list[RowGradients]:
    with record_factors(model, modules) as (captured, zeros):
        batch = AnswerRows.of(model, rows)
        with telling(model, batch.prompt_ends):
            places = (batch.rows, batch.positions)
            logits = wide(logits_at(model, batch.inputs, places))
    at_targets = logits.gather(1, batch.targets[:, None])[:, 0]
    by_token = at_targets - logits.logsumexp(1)
    log_probs = by_token.new_zeros(len(rows)).index_add(0, batch.rows, by_token)
    sizes = torch.tensor([len(answer) for _, answer in rows], device=logits.device)
    firsts = at_targets[sizes.cumsum(0) - sizes]
    listed = list(zeros.values())
    gradients: list[tuple[Tensor, ...]] = [(), ()]
    if listed:
        gradients[0] = torch.autograd.grad(log_probs.sum(), listed, retain_graph=True)
        gradients[1] = torch.autograd.grad(firsts.sum(), listed)
    named = [dict(zip(zeros, part, strict=True)) for part in gradients]
    # With two stacks a layer may see either text; padding has no gradient there.
    own = batch.mask.sum(1).tolist() if batch.encoder is None else [None] * len(rows)
    return [
        RowGradients(
            float(log_probs[row].detach()),
            float(firsts[row].detach()),
            {
                name: LayerGradients(
                    captured[name][row, : own[row]].detach().double(),
                    named[0][name][row, : own[row]].double(),
                    named[1][name][row, : own[row]].double(),
                )
                for name in modules
            },
        )
        for row in range(len(rows))
    ]
