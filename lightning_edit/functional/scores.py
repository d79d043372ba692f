"""Teacher-forcing scores of answer tokens (loss, argmax), and the harmonic mean of scores.

Axis names: ``n`` -- answer tokens, of one answer or of several; ``v`` -- vocabulary; ``a`` --
aspects (reliability, generalization, locality).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.functional.measures import MOST_NLL, NLL_CAP


def token_scores(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Score answer tokens under teacher forcing: loss and most probable token.

    Args:
        logits: Next-token logits at the positions that predict the answer tokens.
        targets: The answer tokens.

    Returns:
        Negative log-probability of each token in nats, and the most probable token at its position.
    """
    # Half precision would round probabilities near one to exactly one.
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    nll = -log_probabilities.gather(-1, targets[:, None]).squeeze(-1)
    nll = nll.clamp(max=MOST_NLL).masked_fill(~nll.isfinite(), NLL_CAP)
    return nll, logits.argmax(dim=-1)


def token_margins(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return by how much the logit of each answer token exceeds the largest of the others.

    Args:
        logits: Next-token logits at the positions that predict the answer tokens.
        targets: The answer tokens.

    Returns:
        Margins in nats; above 0 where the token is the most probable one.

    Example:
        >>> token_margins(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1])).tolist()
        [1.0]
    """
    own = logits.gather(-1, targets[:, None])
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return own.squeeze(-1) - others.amax(-1)


def harmonic_mean(values: Float[Tensor, "... a"]) -> Float[Tensor, "..."]:
    """Return the harmonic mean over the last axis; 0 where one of the values is 0.

    As ROME's score S (arXiv 2202.05262, section 3.4) it is high only where every part is.

    Args:
        values: Shares, 0 to 1. A part that was not measured is NaN and left out.
    """
    measured = ~values.isnan()
    inverse = torch.where(measured, values.reciprocal(), 0.0)
    return measured.sum(-1) / inverse.sum(-1)


def held_mean(values: Float[Tensor, "... a"], least: Float[Tensor, " a"]) -> Float[Tensor, "..."]:
    """Return the harmonic mean over the last axis, of which the first value is indispensable.

    Where it is above 0 the others count as at least ``least``; where it is 0 the mean is 0.

    Args:
        values: Shares, 0 to 1. A part that was not measured is NaN and left out.
        least: What each value counts as at least; of the first one 0.
    """
    held = values[..., :1] > 0
    return harmonic_mean(torch.where(held, values.maximum(least), values))
