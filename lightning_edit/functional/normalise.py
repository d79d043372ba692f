"""Running standardisation over a sequence of edits, and value shifts from it (UltraEdit).

Axis names: ``n`` -- tokens; ``d_in``/``d_out`` -- width of a layer's input and output; ``w`` --
``d_in + d_out``, a key concatenated with the gradient at the layer's output.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Variance = Literal["exact", "as_code"]

#: Added to standard deviations and to n - 1: in the authors' code that of the working type.
EPSILON = float(torch.finfo(torch.float32).eps)


def sums(rows: Float[Tensor, "n w"], variance: Variance = "exact") -> Float[Tensor, "3 w"]:
    r"""Return the sums of a mini-batch for the running statistics.

    The rows are n, :math:`\sum x` and :math:`\sum x^2`. Sums can be added in any order and
    subtracted, so an undone edit leaves no trace.

    Args:
        rows: At least one token.
        variance: ``as_code`` counts :math:`n s^2` with the unbiased :math:`s^2` for the squared
            deviations inside a mini-batch, as the authors' code does, where ``exact`` counts
            :math:`(n - 1) s^2`; one token adds none either way (the authors' code: NaN).

    Example:
        >>> sums(torch.tensor([[1.0], [3.0]])).flatten().tolist()
        [2.0, 4.0, 10.0]
    """
    rows = rows.double()
    squares = rows.square().sum(0)
    if variance == "as_code" and len(rows) > 1:
        squares = squares + rows.var(0)
    return torch.stack([torch.full_like(squares, len(rows)), rows.sum(0), squares])


def standardise(
    rows: Float[Tensor, "n w"], total: Float[Tensor, "3 w"], epsilon: float = EPSILON
) -> Float[Tensor, "n w"]:
    r"""Standardise tokens, :math:`(x - \mu) / (\sigma + \epsilon)`, with totals of :func:`sums`.

    Args:
        rows: Tokens.
        total: Total of the sums, over at least two tokens.
        epsilon: ε.
    """
    count, mean = total[0], total[1] / total[0]
    deviations = (total[2] - count * mean.square()).clamp_min(0)
    return (rows.double() - mean) / ((deviations / (count - 1 + epsilon)).sqrt() + epsilon)


def scale_alone(rows: Float[Tensor, "n w"], epsilon: float = EPSILON) -> Float[Tensor, "n w"]:
    """Scale every token by its own root mean square, used while there are no statistics."""
    rows = rows.double()
    return rows / (rows.square().mean(1, keepdim=True).sqrt() + epsilon)


def value_shifts(
    keys: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"], eta: float
) -> Float[Tensor, "n d_out"]:
    r"""Return value shifts :math:`-\eta \|\hat k\|^2 \hat g`: the wanted output change per token.

    UltraEdit, arXiv 2505.14679, section 4.

    Args:
        keys: Standardised keys.
        gradients: Standardised gradients.
        eta: η.
    """
    return -eta * keys.square().sum(1, keepdim=True) * gradients


def first_order_drop(
    keys: Float[Tensor, "n d_in"],
    gradients: Float[Tensor, "n d_out"],
    left: Float[Tensor, "d_out r"],
    right: Float[Tensor, "r d_in"],
) -> float:
    """Return what a low-rank update takes from a loss to first order, in nats, over all tokens.

    Args:
        keys: Inputs of the layer.
        gradients: Gradients of the loss with respect to its outputs.
        left: Left factor of the update.
        right: Right factor.
    """
    moved = (keys.to(right) @ right.mT) @ left.mT
    return -float((moved * gradients.to(moved)).sum())
