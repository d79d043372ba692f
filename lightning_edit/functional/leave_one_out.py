r"""Leave-one-out of least squares: the update that a solve without some keys would have given.

For :math:`\Delta = R G^{-1} K^\top A^{-1}` with :math:`G = K^\top A^{-1} K + \alpha I`, solving
again without the keys of group g takes away
:math:`(R G^{-1})_g (G^{-1})_{gg}^{-1} (G^{-1} K^\top A^{-1})_g`: the group's own rows of the right
factor, with other columns in place of its residuals. It is the block form of the formula that
cross-validates ridge regression without refitting (PRESS; Allen, Technometrics 1974).

Axis names: ``n`` -- keys; ``d`` -- the layer's output.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def left_out_columns(
    residuals: Float[Tensor, "d n"], gram_inverse: Float[Tensor, "n n"], owners: Sequence[int]
) -> Float[Tensor, "d n"]:
    """Return the columns that take the place of a group's residuals when it is left out.

    Args:
        residuals: R, the left factor of the update.
        gram_inverse: G⁻¹ of :class:`~lightning_edit.functional.solve.Solution`.
        owners: The group of each key.

    Returns:
        One column a key: the sum of their products with the rows of the right factor, over a group,
        is the update minus that of a solve without the group.

    Example:
        >>> keys, residuals = torch.eye(2).double(), torch.tensor([[1.0, 4.0]]).double()
        >>> left_out_columns(residuals, torch.linalg.inv(keys.mT @ keys + torch.eye(2)), (0, 1))
        tensor([[1., 4.]], dtype=torch.float64)
    """
    inverse = gram_inverse.double()
    weighted = residuals.double() @ inverse
    found = torch.empty_like(weighted)
    for owner in dict.fromkeys(owners):
        group = [place for place, one in enumerate(owners) if one == owner]
        found[:, group] = torch.linalg.solve(inverse[group][:, group], weighted[:, group].mT).mT
    return found
