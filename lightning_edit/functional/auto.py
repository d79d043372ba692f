"""Settings that ``auto`` computes from a model's own statistics: ridge weights and step sizes.

Published values were chosen for one model. These rules state what a published value is to achieve
(the share of a residual that is written, the share of a loss that a step removes) and solve for the
number that achieves it on the model at hand. docs/settings.md compares both.

Axis names: ``w`` -- wordings; ``s`` -- subjects; ``d`` -- width of a key.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def weight_for_share(squared_norm: float, share: float) -> float:
    r"""Return the ridge weight at which a given share of a key's residual is written.

    Least squares with the weight λ writes the share :math:`s = q / (\lambda + q)` of the residual
    at one key, with q its squared norm as the preserved matrix measures it (MEMIT, arXiv
    2210.07229, eq. 14, for one key). Keys of ordinary text have :math:`q = k^\top C^{-1} k`, whose
    mean is the width of a key, whatever the scale of the activations.

    Args:
        squared_norm: q, in the square of the key's unit, or without unit in units of C.
        share: s, above 0 and below 1.

    Returns:
        λ, in the unit of q.

    Raises:
        ValueError: If the share is no share.

    Example:
        >>> weight_for_share(640.0, 0.8)
        160.0
    """
    if not 0 < share < 1:
        raise ValueError(f"a share lies between 0 and 1, got {share}")
    return squared_norm * round((1 - share) / share, 12)


def step_for_drop(loss: float, gradients: Iterable[Tensor], reach: float) -> float:
    r"""Return the step size at which Adam's first step lowers a loss by a share of its value.

    Adam's first step moves every weight by the learning rate, against the sign of its gradient, so
    to first order it takes :math:`\eta \|g\|_1` from the loss (Kingma and Ba, arXiv 1412.6980,
    section 2.1). The step size :math:`\eta = \rho\,\ell / \|g\|_1` takes the share ρ.

    Args:
        loss: ℓ, in nats.
        gradients: Its gradient with respect to every trained weight, in nats per unit of weight.
        reach: ρ.

    Returns:
        η, in the unit of the weights; 0 where there is no gradient, and so nothing to step along;
        NaN where loss or gradient are.

    Example:
        >>> import torch
        >>> step_for_drop(4.0, [torch.tensor([[1.0, -3.0]])], 0.5)
        0.5
    """
    total = sum(float(gradient.detach().abs().sum(dtype=torch.float64)) for gradient in gradients)
    return 0.0 if total == 0 else reach * loss / total


def subject_distance(keys: Float[Tensor, "w s d"]) -> float:
    """Return how far apart the keys of prompts lie that differ in their subject alone.

    Args:
        keys: Keys of prompts, each wording with each subject.

    Returns:
        The median over all pairs of subjects with the same wording (L2), in the unit of the keys.

    Example:
        >>> import torch
        >>> subject_distance(torch.tensor([[[0.0], [3.0]], [[1.0], [2.0]], [[5.0], [9.0]]]))
        3.0
    """
    pairs = torch.stack([torch.pdist(one.double()) for one in keys])
    return float(pairs.median())
