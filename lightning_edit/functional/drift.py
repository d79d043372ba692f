"""Drift of hidden states from the unedited model, and the half-life of edits.

Axis names: ``n`` -- texts; ``d`` -- hidden width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

DISTANCE_CAP = 1000.0
"""Cap on one relative distance, so that a broken model's mean stays finite."""


def cosine_distance(now: Float[Tensor, "n d"], before: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the cosine distance 1 − cos of hidden states, row by row; 0 is the same direction.

    Computed as half the squared distance of the unit vectors, which is exact for small angles.

    Args:
        now: Hidden states of the edited model; a distance that is not finite counts as 1.
        before: Hidden states of the unedited model.
    """
    now, before = now.double(), before.double()
    tiny = torch.finfo(torch.float64).tiny
    units = [states / states.norm(dim=-1, keepdim=True).clamp_min(tiny) for states in (now, before)]
    distance: Tensor = (units[0] - units[1]).square().sum(-1) / 2
    return distance.nan_to_num(nan=1.0)


def relative_distance(
    now: Float[Tensor, "n d"], before: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Return the relative distance ‖now − before‖ / ‖before‖ of hidden states, row by row.

    Args:
        now: Hidden states of the edited model; a distance that is not finite counts as 1000, which
            also caps finite ones.
        before: Hidden states of the unedited model.
    """
    now, before = now.double(), before.double()
    tiny = torch.finfo(torch.float64).tiny
    distance: Tensor = (now - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(tiny)
    return distance.nan_to_num(nan=DISTANCE_CAP, posinf=DISTANCE_CAP).clamp(max=DISTANCE_CAP)


def slope(count: float, x: float, y: float, xx: float, xy: float) -> float | None:
    """Return the slope of the least-squares line through points, from their sums.

    Args:
        count: Number of points.
        x: Σx.
        y: Σy.
        xx: Σx².
        xy: Σxy.

    Returns:
        The slope; ``None`` where all points have one x.
    """
    spread = count * xx - x * x
    return (count * xy - x * y) / spread if spread > 0 else None


def half_life(ages: Sequence[float], shares: Sequence[float]) -> float | None:
    """Return the half-life of edits: the age at which a retention curve falls to one half.

    The curve is taken as straight between its points and begins at (0, 1).

    Args:
        ages: Ages, ascending.
        shares: Share of edits that are still retained.

    Returns:
        The first crossing; ``None`` if the curve stays above one half.

    Example:
        >>> half_life([1.0, 10.0, 20.0], [1.0, 0.75, 0.25])
        15.0
    """
    last_age, last_share = 0.0, 1.0
    for age, share in zip(ages, shares, strict=True):
        if share <= 0.5:
            fallen = (last_share - 0.5) / (last_share - share) if last_share > share else 0.0
            return last_age + (age - last_age) * fallen
        last_age, last_share = age, share
    return None
