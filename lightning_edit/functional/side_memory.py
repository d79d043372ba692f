"""Formulas of side memories (WISE): margins between what is edited and what is not, TIES merging.

Axis names: ``k`` -- updates to merge; ``e`` -- edited rows; ``u`` -- unrelated rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def margin_loss(
    edited: Float[Tensor, " e"],
    unrelated: Float[Tensor, " u"],
    margins: tuple[float, float, float],
) -> Float[Tensor, ""]:
    r"""Return the loss that keeps activations of edited rows above those of unrelated ones.

    With activations :math:`\Delta` and margins :math:`\alpha, \beta, \gamma` it is
    :math:`[\Delta(u) - \alpha]_+ + [\beta - \Delta(e)]_+ + [\gamma - (\Delta(e) - \Delta(u))]_+`,
    each term the mean over the rows, or pairs of them, in which it is positive.

    Args:
        edited: Activations of edited rows.
        unrelated: Activations of unrelated rows.
        margins: The margins α, β, γ.

    Example:
        >>> margin_loss(torch.tensor([18.0, 30.0]), torch.tensor([6.0]), (5.0, 20.0, 10.0))
        tensor(3.)
    """
    alpha, beta, gamma = margins
    gaps = gamma - (edited[None, :] - unrelated[:, None])
    return _hinge(unrelated - alpha) + _hinge(beta - edited) + _hinge(gaps)


def _hinge(values: Tensor) -> Tensor:
    """Return the mean of the positive values; zero if there is none."""
    positive = values > 0
    return (values * positive).sum() / positive.sum().clamp_min(1)


def ties(updates: Float[Tensor, "k ..."], density: float) -> Float[Tensor, "..."]:
    """Merge updates by TIES (Yadav et al., 2023): trim, elect a sign, average those that agree.

    Args:
        updates: Updates of one weight.
        density: Share of the entries of each update that is kept, those of largest magnitude.

    Returns:
        In every entry the mean of the trimmed updates with the sign of their sum; zero where none
        is left.

    Raises:
        ValueError: If the density is not in (0, 1].

    Example:
        >>> ties(torch.tensor([[4.0, 1.0, -2.0], [2.0, 0.5, 3.0]]), 0.67)
        tensor([3., 0., 3.])
    """
    if not 0 < density <= 1:
        raise ValueError(f"a density lies between 0 and 1, got {density}")
    trimmed = torch.stack([_trim(one, density) for one in updates])
    elected = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == elected) & (trimmed != 0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _trim(update: Tensor, density: float) -> Tensor:
    """Set all entries but those of largest magnitude to zero."""
    flat = update.flatten()
    kept = flat.abs().topk(max(1, int(density * flat.numel()))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view(update.shape)
