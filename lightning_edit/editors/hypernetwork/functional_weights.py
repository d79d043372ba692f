"""Functional weights: deltas as differentiable inputs of a forward pass (patched or stacked).

Axis names: ``e`` -- alternative edits; ``r`` -- rank; ``d_out``/``d_in`` -- of an edited weight.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.models.weights import Weight


def patched_parameters(weights: Sequence[Weight], delta: Delta) -> dict[str, Tensor]:
    """Return edited weights for a functional call, in the model's layout and dtype.

    Args:
        weights: Weights of the model.
        delta: An update of each weight.
    """
    values = {}
    for handle in weights:
        change = delta.weights[handle.name].dense(torch.float32).to(handle.device)
        base = handle.raw().detach()
        oriented = change.mT if handle.transposed else change
        values[handle.name] = (base.float() + oriented).to(base.dtype)
    return values


def stacked_factors(
    weights: Sequence[Weight], deltas: Sequence[Delta]
) -> dict[str, tuple[Float[Tensor, "e d_out r"], Float[Tensor, "e r d_in"]]]:
    """Stack the low-rank factors of alternative updates, zero-padded to one rank.

    Args:
        weights: Weights of the model.
        deltas: Alternatives; each updates all the weights.

    Returns:
        Left and right factors by module name; a dense update is its own left factor (the right one
        is the identity).
    """
    stacked = {}
    for handle in weights:
        lefts, rights = [], []
        for delta in deltas:
            update = delta.weights[handle.name]
            if isinstance(update, LowRank):
                lefts.append(update.left.mT)
                rights.append(update.right)
            else:
                lefts.append(update.value.mT)
                rights.append(torch.eye(update.value.shape[1], device=update.value.device))
        left = pad_sequence(lefts, batch_first=True).mT.to(handle.device)
        right = pad_sequence(rights, batch_first=True).to(handle.device)
        stacked[handle.name.removesuffix(".weight")] = (left, right)
    return stacked
