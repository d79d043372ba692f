"""Losses of target search and of gradient editors: log-probability, KL drift, bag of tokens.

Axis names: ``m`` -- positions where a token is predicted; ``v`` -- vocabulary; ``r`` -- rows;
``n`` -- requests; ``k`` -- positions with a target; ``w`` -- positions without.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_probs(
    logits: Float[Tensor, "m v"], targets: Int[Tensor, " k"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, "w v"]]:
    """Return target log-probabilities at the first positions, and every token's at the others.

    This is all that target search reads of a pass. Both share one backward function, which reads
    and writes each row over the vocabulary once.

    Args:
        logits: One row per position.
        targets: Target token at each of the first positions.

    Returns:
        One value per target, and one row for each of the w other positions.

    Example:
        >>> chosen, others = log_probs(torch.zeros(3, 4), torch.tensor([0, 1]))
        >>> chosen, others.shape
        (tensor([-1.3863, -1.3863]), torch.Size([1, 4]))
    """
    chosen: Tensor
    others: Tensor
    chosen, others = _LogProbs.apply(logits, targets)  # type: ignore[no-untyped-call]  # torch's is untyped
    return chosen, others


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "m v"], targets: Int[Tensor, " k"]
    ) -> tuple[Tensor, Tensor]:
        every = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(every, targets)
        first, others = every[: len(targets)], every[len(targets) :]
        # The others outlive the pass; without a copy they would keep the first rows in memory.
        return first.gather(1, targets[:, None]).squeeze(1), others.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_chosen: Float[Tensor, " k"], by_others: Float[Tensor, "w v"]
    ) -> tuple[Tensor, None]:
        every, targets = ctx.saved_tensors
        by_logits = every.exp()
        sums = torch.cat([by_chosen, by_others.sum(dim=1)])
        by_logits.mul_(-sums[:, None])
        by_logits[: len(targets)].scatter_add_(1, targets[:, None], by_chosen[:, None])
        by_logits[len(targets) :].add_(by_others)
        return by_logits, None


def mean_by(
    values: Float[Tensor, " m"],
    groups: Int[Tensor, " m"],
    count: int,
    sizes: Float[Tensor, " r"] | None = None,
) -> Float[Tensor, " r"]:
    """Return the mean of each group of values (segment mean).

    Args:
        values: Any values.
        groups: Group of each value; every group has at least one.
        count: Number of groups.
        sizes: Number of values of each group, where it is known; ``None``: they are counted.

    Example:
        >>> mean_by(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2)
        tensor([2., 5.])
    """
    zeros = values.new_zeros(count)
    if sizes is None:
        sizes = zeros.index_add(0, groups, torch.ones_like(values))
    return zeros.index_add(0, groups, values) / sizes


def drift(now: Float[Tensor, "m v"], reference: Float[Tensor, "m v"]) -> Float[Tensor, " m"]:
    """Return the KL divergence KL(now ‖ before), in that direction, as the authors of ROME do.

    Args:
        now: The model's log-probabilities now.
        reference: The model's log-probabilities before.
    """
    return (now.exp() * (now - reference)).sum(-1)


def bag_nll(logits: Float[Tensor, "n v"], answers: Sequence[Sequence[int]]) -> Float[Tensor, " n"]:
    """Return the negative log-likelihood of all tokens of each answer at one position.

    Args:
        logits: One row per answer.
        answers: Token ids of the answers.

    Returns:
        One value per answer, mean over its tokens.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    each = [-line[list(answer)].mean() for line, answer in zip(log_probs, answers, strict=True)]
    return torch.stack(each)


def bag_entropy(answer: Sequence[int]) -> float:
    """Return the smallest :func:`bag_nll` that an answer can have, the entropy of its tokens.

    One position cannot give all of them a probability near 1.

    Args:
        answer: Token ids.

    Example:
        >>> round(bag_entropy([5, 7]), 4), bag_entropy([5, 5])
        (0.6931, 0.0)
    """
    counts = Counter(answer).values()
    return sum(count / len(answer) * math.log(len(answer) / count) for count in counts)
