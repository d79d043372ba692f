"""Post-processing of updates against side effects: sparsification (RECT), spectrum (PRUNE).

Axis names: ``d_out``/``d_in`` -- a weight acts as ``y = W k``; ``r`` -- singular values.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["log", "linear"]

#: Avoids a division by a weight of zero, as AlphaEdit's copy of RECT does.
_EPSILON = 1e-8


def keep_relatively_largest(
    update: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], kept: float
) -> Float[Tensor, "d_out d_in"]:
    r"""Sparsify an update: zero all entries but those that change their weight most.

    An entry stays if :math:`|\Delta_{ij} / W_{ij}|` reaches the (1 - ``kept``) quantile over the
    matrix (RECT, arXiv 2401.04700, section 5).

    Args:
        update: The update.
        weight: The matrix before it.
        kept: Share of the entries that stay, in (0, 1]. The entry that is the quantile stays too.

    Example:
        >>> update, weight = torch.ones(1, 4), torch.tensor([[1.0, 8.0, 4.0, 2.0]])
        >>> keep_relatively_largest(update, weight, 0.5)
        tensor([[1., 0., 1., 1.]])
    """
    change = update.abs() / (weight.abs() + _EPSILON)
    rank = int((1 - kept) * change.numel())
    if rank == 0:
        return update
    threshold = change.flatten().kthvalue(rank).values
    return update.where(change >= threshold, torch.zeros_like(update))


def restrain(
    singular: Float[Tensor, " r"], largest: float, reduction: Reduction, base: float
) -> Float[Tensor, " r"]:
    r"""Shrink singular values of a total update that exceed the weight's own largest.

    ``log``: :math:`\log_\alpha \hat\sigma - \log_\alpha \sigma_0 + \sigma_0` with α = ``base``;
    ``linear``: :math:`(\hat\sigma + \sigma_0) / 2` (PRUNE, arXiv 2405.16821, equation 5 and its
    code). Continuous at :math:`\sigma_0`; smaller values stay.

    Args:
        singular: Singular values of everything that edits added to a matrix.
        largest: :math:`\sigma_0`, the largest singular value of the unedited matrix.
        reduction: The function.
        base: α of ``log``.

    Example:
        >>> restrain(torch.tensor([4.0, 1.0]), 2.0, "linear", math.e)
        tensor([3., 1.])
    """
    if reduction == "linear":
        shrunk = (singular + largest) / 2
    else:
        # Values up to the largest are not used, but their logarithm must exist.
        shrunk = (singular.clamp(min=largest) / largest).log() / math.log(base) + largest
    return singular.where(singular <= largest, shrunk)
