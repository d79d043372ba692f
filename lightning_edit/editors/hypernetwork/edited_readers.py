"""Edited models as functions of their updates: readers of logits, leaves to differentiate by."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.editors.hypernetwork.functional_weights import stacked_factors
from lightning_edit.editors.hypernetwork.outer_loss import Reader
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.ridge_update import RidgeUpdate
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits, answer_logits_each
from lightning_edit.models.weights import Weight

Totals = Mapping[str, Tensor]
"""By parameter name, the sum of all updates so far, (d_out, d_in), in float64."""


def shifted_parameters(weights: Sequence[Weight], totals: Totals) -> dict[str, Tensor]:
    """Return edited weights, rounded once to the model's dtype, in the model's layout.

    The sum starts from the pristine weights each time; nothing is added to rounded weights.

    Args:
        weights: Edited weights of the model.
        totals: Their updates.
    """
    values = {}
    for handle in weights:
        change = totals[handle.name].to(handle.device)
        base = handle.raw().detach()
        oriented = change.mT if handle.transposed else change
        values[handle.name] = (base.double() + oriented).to(base.dtype)
    return values


def reader_of(model: Any, parameters: Mapping[str, Tensor] | None) -> Reader:
    """Return a reader of a model's logits with some parameters replaced.

    Args:
        model: The language model.
        parameters: By parameter name; ``None``: its own.
    """

    def read(batch: AnswerRows, _: Tensor) -> Tensor:
        return answer_logits(model, batch, parameters)

    return read


def written_together(
    model: Any, weights: Sequence[Weight], totals: Totals
) -> tuple[Reader, dict[str, Tensor]]:
    """Return a reader of the model with all updates, and its edited weights as leaves.

    Args:
        model: The language model.
        weights: Edited weights.
        totals: Their updates.
    """
    leaves = {
        name: value.requires_grad_() for name, value in shifted_parameters(weights, totals).items()
    }
    return reader_of(model, leaves), leaves


def written_alone(
    model: Any, weights: Sequence[Weight], solved: Mapping[str, Sequence[RidgeUpdate]]
) -> tuple[Reader, dict[str, Tensor]]:
    """Return a reader in which each row sees its own edit alone, and the edits' left factors.

    Args:
        model: The language model.
        weights: Edited weights.
        solved: By parameter name, one update per edit.

    Returns:
        The reader; and by parameter name the stacked left factors, (edits, d_out, tokens), whose
        gradient is that of each edit's shifts.
    """
    count = len(next(iter(solved.values())))
    deltas = []
    for number in range(count):
        updates = {}
        for handle in weights:
            one, dtype = solved[handle.name][number], _wide(handle)
            updates[handle.name] = LowRank(one.shifts.mT.to(dtype), one.readout.to(dtype))
        deltas.append(Delta((str(number),), updates))
    changes = stacked_factors(weights, deltas)
    leaves = {}
    for handle in weights:
        module = handle.name.removesuffix(".weight")
        left, right = changes[module]
        leaves[handle.name] = left.detach().requires_grad_()
        changes[module] = (leaves[handle.name], right)

    def read(batch: AnswerRows, owners: Tensor) -> Tensor:
        return answer_logits_each(model, batch, changes, owners)

    return read, leaves


def _wide(handle: Weight) -> torch.dtype:
    return torch.promote_types(handle.dtype, torch.float32)
