"""Low-rank factorisation of a matrix that may have low rank, by random projection.

Axis names: ``m`` and ``n`` -- rows and columns; ``r`` -- rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor

#: Extra random directions, which make a missed direction of the range practically impossible.
_OVERSAMPLING = 8


def low_rank_factors(
    matrix: Float[Tensor, "m n"], max_rank: int, tolerance: float
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]] | None:
    """Factorise a matrix as ``left @ right`` with the smallest rank that reproduces it.

    Halko, Martinsson, Tropp: *Finding structure with randomness*, SIAM Review 2011, arXiv
    0909.4061, algorithm 4.1 with growing sizes, and the error measured, not estimated.

    Args:
        matrix: Any matrix, in float64.
        max_rank: Highest rank that is tried.
        tolerance: Largest Frobenius norm of what the factors leave.

    Returns:
        Factors in float32; ``None`` if there are none of such a rank within the tolerance.

    Example:
        >>> left, right = low_rank_factors(torch.ones(30, 20).double(), 4, 1e-4)
        >>> left.shape, bool(((left @ right) - 1).abs().max() < 1e-6)
        (torch.Size([30, 1]), True)
        >>> low_rank_factors(torch.eye(30).double(), 4, 1e-4) is None
        True
    """
    draw = torch.Generator().manual_seed(0)
    size = min(8, max_rank)
    while size >= 1:
        columns = min(size + _OVERSAMPLING, *matrix.shape)
        probe = torch.randn(matrix.shape[1], columns, generator=draw, dtype=torch.float64)
        basis, _ = torch.linalg.qr(matrix @ probe.to(matrix.device))
        U, S, Vh = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        # Half of the tolerance is left for the rounding of the factors to float32.
        tails = (matrix.square().sum() - S.square().cumsum(0)).clamp_min(0).sqrt()
        enough = (tails <= tolerance / 2).nonzero()
        if len(enough) and int(enough[0]) < max_rank:
            rank = int(enough[0]) + 1
            left, right = (basis @ U[:, :rank] * S[:rank]).float(), Vh[:rank].float()
            left_over = matrix - left.double() @ right.double()
            return (left, right) if float(left_over.norm()) <= tolerance else None
        if size == max_rank:
            break
        size = min(4 * size, max_rank)
    return None
