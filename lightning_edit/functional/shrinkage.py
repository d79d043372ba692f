r"""Ledoit-Wolf shrinkage: second moments of few samples, pulled towards a target matrix.

Ledoit & Wolf, A well-conditioned estimator for large-dimensional covariance matrices, J.
Multivariate Analysis 88 (2004): of all mixtures :math:`(1-\rho) S + \rho T` the one with least
expected squared error has

.. math:: \rho = \frac{\sum_{ij} \mathrm{Var}(S_{ij})}{\sum_{ij} (S_{ij} - T_{ij})^2},

where entries with :math:`S_{ij} = T_{ij}` count in neither sum. T is here :math:`\mu I` with
:math:`\mu = \mathrm{tr}(S)/f` (their lemma 3.2 to 3.5), or the diagonal of S (Schäfer & Strimmer,
Statistical Applications in Genetics and Molecular Biology 4 (2005), table 2, target D).

Axis names: ``f`` -- width of a key.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Target = Literal["identity", "diagonal"]


@dataclass(frozen=True)
class Shrunk:
    """Second moment after shrinkage, with the shrinkage intensity.

    Args:
        moment: (1-ρ)·S + ρ·T.
        intensity: ρ, from 0 (as measured) to 1 (the target alone).
    """

    moment: Float[Tensor, "f f"]
    intensity: float


def shrink(
    moment: Float[Tensor, "f f"],
    samples: int,
    fourth: float,
    fourth_of_entries: float,
    target: Target,
) -> Shrunk:
    r"""Shrink a sample second moment towards a target with the least expected squared error.

    The variances are those of independent samples: :math:`\sum_{ij} \mathrm{Var}(S_{ij})` is
    estimated by :math:`(E\|k\|^4 - \|S\|_F^2)/n`, and without the diagonal by
    :math:`(E\|k\|^4 - E\sum_i k_i^4 - \|S\|_F^2 + \sum_i S_{ii}^2)/n`.

    Args:
        moment: S = E[k kᵀ] over the samples.
        samples: n.
        fourth: E‖k‖⁴.
        fourth_of_entries: E Σᵢ kᵢ⁴.
        target: ``identity``: the mean eigenvalue in every direction. ``diagonal``: the diagonal of
            S, without what entries have in common.

    Note:
        The tokens of a text are not independent, so the estimated ρ is a lower bound of the best.
        The published estimators are for covariances; S is uncentred, and so is T.

    Example:
        >>> shrink(torch.diag(torch.tensor([3.0, 1.0])), 10, 14.0, 14.0, "identity").intensity
        0.2
    """
    S = moment.double()
    diagonal = S.diagonal()
    variance, T = fourth - float(S.square().sum()), float(diagonal.mean()) * torch.eye(len(S)).to(S)
    if target == "diagonal":
        variance, T = (
            variance - fourth_of_entries + float(diagonal.square().sum()),
            torch.diag(diagonal),
        )
    distance = float((S - T).square().sum())
    # A moment that equals its target has no error to trade.
    intensity = 1.0 if distance == 0 else min(1.0, max(0.0, variance / samples / distance))
    return Shrunk((1 - intensity) * S + intensity * T, intensity)
