"""Ripple effects: cosine similarity in hidden space, token ranks, percentiles of changes.

Axis names: ``e`` -- edits; ``f`` -- facts; ``n`` -- answer tokens; ``v`` -- vocabulary; ``d`` --
width.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.functional.solve import Preserved


def cosine(edits: Float[Tensor, "e d"], facts: Float[Tensor, "f d"]) -> Float[Tensor, "e f"]:
    """Return the cosine similarity of each edit's and each fact's representation.

    Args:
        edits: One row per edit.
        facts: One row per fact.

    Returns:
        Values from -1 to 1; 0 where a row is zero.
    """
    unit = torch.nn.functional.normalize
    return unit(edits.double(), dim=-1) @ unit(facts.double(), dim=-1).T


def key_overlap(
    edits: Float[Tensor, "e d"], facts: Float[Tensor, "f d"], preserved: Preserved
) -> Float[Tensor, "e f"]:
    r"""Return the key overlap :math:`|k_i^\top A^{-1} k_x| / k_i^\top A^{-1} k_i`.

    It is the share of its full write that an edit of one request by an equality constraint (ROME)
    adds at the fact's key.

    Args:
        edits: Keys of the edits.
        facts: Keys of the facts.
        preserved: Factored A, such as the second moment of keys.
    """
    reduced = preserved.reduce(edits.mT)
    solved = preserved.inverse_times(reduced)
    own = (reduced * solved).sum(0)
    return (solved.mT @ preserved.reduce(facts.mT)).abs() / own[:, None]


def token_ranks(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the rank of each answer token among all tokens, 1 for the most probable.

    Args:
        logits: Next-token logits at the positions that predict the answer tokens.
        targets: The answer tokens.

    Returns:
        One more than the tokens with a higher score. A score of NaN counts as the lowest; if it is
        the answer's, it gives the last rank.
    """
    scores = logits.float().nan_to_num(nan=-torch.inf)
    own = logits.float().gather(-1, targets[:, None])
    above = (scores > own).sum(dim=-1) + 1
    return torch.where(own.squeeze(-1).isnan(), logits.shape[-1], above)


def percentile(values: Float[Tensor, " f"], share: float) -> Float[Tensor, ""]:
    """Return the nearest-rank percentile: the smallest value that a share of them does not exceed.

    It changes by no more than a value does: inputs that differ by rounding give results that do.

    Args:
        values: At least one number, in any order.
        share: Such as 0.95.
    """
    # The small offset keeps 0.95 * 20 = 19.000000000000004 from selecting the 20th.
    rank = max(1, math.ceil(share * len(values) - 1e-9))
    return values.sort().values[rank - 1]
