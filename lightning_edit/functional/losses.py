"""Objectives of target search and of gradient editors.

Axis names: ``m`` -- places where a token is predicted; ``v`` -- vocabulary; ``r`` -- rows;
``n`` -- requests.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def row_nll(
    logits: Float[Tensor, "m v"], targets: Int[Tensor, " m"], rows: Int[Tensor, " m"], count: int
) -> Float[Tensor, " r"]:
    """Return each row's negative log-likelihood, mean over its target tokens.

    Args:
        logits: One line a predicted token.
        targets: The token wanted there.
        rows: The row each place belongs to; every row has at least one.
        count: Number of rows.

    Returns:
        One value a row, in nats.

    Example:
        >>> uniform = torch.zeros(3, 4)
        >>> row_nll(uniform, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2)
        tensor([1.3863, 1.3863])
    """
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return mean_by(losses, rows, count)


def mean_by(
    values: Float[Tensor, " m"], groups: Int[Tensor, " m"], count: int
) -> Float[Tensor, " r"]:
    """Return the mean of each group of values.

    Args:
        values: Any values.
        groups: The group that each belongs to; every group has at least one.
        count: Number of groups.

    Example:
        >>> mean_by(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2)
        tensor([2., 5.])
    """
    zeros = values.new_zeros(count)
    return zeros.index_add(0, groups, values) / zeros.index_add(0, groups, torch.ones_like(values))


def drift(now: Float[Tensor, "m v"], reference: Float[Tensor, "m v"]) -> Float[Tensor, " m"]:
    """Return KL(now ‖ before), in that direction, as the authors of ROME compute it.

    Args:
        now: The model's log-probabilities now.
        reference: Those before.
    """
    return (now.exp() * (now - reference)).sum(-1)


def bag_nll(logits: Float[Tensor, "n v"], answers: Sequence[Sequence[int]]) -> Float[Tensor, " n"]:
    """Return the negative log-likelihood of all tokens of each answer at one position.

    Args:
        logits: One line an answer.
        answers: Token ids of the answers.

    Returns:
        One value an answer, mean over its tokens.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    each = [-line[list(answer)].mean() for line, answer in zip(log_probs, answers, strict=True)]
    return torch.stack(each)
