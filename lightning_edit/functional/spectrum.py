"""Singular-value spectrum of an update, and the energy that a low-rank approximation keeps.

Axis names: ``d_out``/``d_in`` -- a weight acts as ``y = W k``; ``r`` -- rank of the factors;
``s`` -- singular values; ``a``/``b`` -- sides of any matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def squared_singular_values(matrix: Float[Tensor, "a b"]) -> Float[Tensor, " s"]:
    """Return the squared singular values of a matrix, largest first, in float64.

    They are the eigenvalues of the smaller of the two Gram matrices; values below 1e-15 of the
    largest are rounding.

    Args:
        matrix: Any matrix.
    """
    matrix = matrix.double()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    values: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)
    return values.flip(0).clamp_min(0)


def squared_singular_values_of_product(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]
) -> Float[Tensor, " s"]:
    """Return the squared singular values of ``left @ right`` without forming it where r is small.

    Args:
        left: One factor.
        right: The other.
    """
    left, right = left.double(), right.double()
    if left.shape[1] > min(left.shape[0], right.shape[1]):
        return squared_singular_values(left @ right)
    # left = QR with orthonormal columns in Q, which change no singular value.
    return squared_singular_values(torch.linalg.qr(left, mode="r").R @ right)


def energy_of_rank(squared: Float[Tensor, " s"], rank: int) -> float:
    """Return the energy share (squared norm) that a matrix's best low-rank approximation keeps.

    By the theorem of Eckart and Young, that of its largest singular values.

    Args:
        squared: Squared singular values, largest first.
        rank: Rank of the approximation.

    Returns:
        A share; 1 for a matrix of zeros.
    """
    total = float(squared.sum())
    return min(1.0, float(squared[:rank].sum()) / total) if total > 0 else 1.0
