"""Least-squares solver of every closed-form editor, through Cholesky factors.

For one linear layer ``y = W k`` it finds the update that writes residuals R at keys K:

    min ‖ΔK − R‖² + λ·tr(Δ C Δᵀ) + ‖Δ K_p‖² + μ‖Δ‖²   subject to Δ = ΔP

where A = λC + K_pK_pᵀ + μI collects all terms that no new edit changes. ROME, MEMIT, EMMET,
AlphaEdit, ENCORE and their relatives are settings of it.

Axis names: ``f`` -- width of a key, the layer's input; ``d`` -- the layer's output; ``n`` -- keys;
``r`` -- rank of the projector P = UUᵀ, or ``f`` without one; ``m`` -- ``n``, or for at least ``r``
keys the smaller of ``n`` and ``d``.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.exceptions import SolveError
from lightning_edit.functional.cholesky import add_keys

SolveMode = Literal["ridge", "equality"]

_REMEDY = (
    "collect statistics on more text (at least as many tokens as the layer is wide), "
    "or raise the ridge"
)
#: Where keys and residuals that are not finite come from, by name.
_NOT_FINITE = {
    "keys": "the model's own states there are not",
    "residuals": "the model's own states or gradients there are not, or a rate is too large",
}


@dataclass(frozen=True)
class Solution:
    """Low-rank update as two factors, with the condition number and unwritten share of its system.

    Args:
        left: The residuals, (d, n), or for many keys the identity, (d, d).
        right: One row per key, (n, f), or the update, (d, f); the update is ``left @ right``.
        condition: Lower bound of the condition number of A, from its Cholesky factor.
        unwritten: ‖R − ΔK‖ / ‖R‖: the share of the residuals that was given up to keep old keys.
        gram_inverse: G⁻¹ with G = KᵀA⁻¹K + αI, from which
            :func:`~lightning_edit.functional.leave_one_out.left_out_columns` tells what the update
            would be without some keys; ``None`` where it was not formed.
    """

    left: Float[Tensor, "d m"]
    right: Float[Tensor, "m f"]
    condition: float
    unwritten: float
    gram_inverse: Float[Tensor, "n n"] | None = None


@dataclass(frozen=True)
class Preserved:
    """Cholesky factor of A = λC + K_pK_pᵀ + μI inside the range of P, reused by many solves.

    Make it with :meth:`of`.

    Args:
        factor: Lower Cholesky factor of A (of UᵀAU with a projector); ``None`` when A = μI.
        basis: Orthonormal columns U of the projector.
        ridge: μ.
        where: The layer and weights, for error messages.
    """

    factor: Float[Tensor, "r r"] | None
    basis: Float[Tensor, "f r"] | None
    ridge: float
    where: str

    @classmethod
    def of(
        cls,
        moment: Float[Tensor, "f f"] | None = None,
        weight: float = 1.0,
        history: Float[Tensor, "f f"] | None = None,
        ridge: float = 0.0,
        basis: Float[Tensor, "f r"] | None = None,
        where: str = "the edited layer",
    ) -> "Preserved":
        """Compute the Cholesky factor of what edits must preserve.

        Args:
            moment: Uncentred second moment C of the layer's keys; ``None`` for none.
            weight: λ, its weight.
            history: Σ KKᵀ of earlier edits.
            ridge: μ, weight of ‖Δ‖².
            basis: Orthonormal columns that span where the update may act (AlphaEdit's null space).
            where: Name of the layer, for messages.

        Returns:
            The factored matrix.

        Raises:
            SolveError: If the matrix is not finite or not positive definite.
        """
        named = f"{where} (lambda={weight:g}, ridge={ridge:g})"
        total = None
        if moment is not None and weight != 0:
            total = moment.to(torch.float64, copy=True).mul_(weight)
        if history is not None:
            total = history.to(torch.float64, copy=True) if total is None else total.add_(history)
        if total is None:
            if ridge <= 0:
                raise SolveError(f"{named}: nothing to preserve and no ridge; set a positive ridge")
            return cls(None, None if basis is None else basis.double(), ridge, named)
        basis = None if basis is None else basis.double()
        if basis is not None:
            total = basis.mT @ total @ basis
        total.diagonal().add_(ridge)
        return cls(_cholesky(total, named), basis, ridge, named)

    @property
    def condition(self) -> float:
        """Lower bound of A's condition number: squared ratio of the factor's diagonal entries."""
        if self.factor is None:
            return 1.0
        diagonal = self.factor.diagonal()
        return float((diagonal.max() / diagonal.min()) ** 2)

    def reduce(self, keys: Float[Tensor, "f n"]) -> Float[Tensor, "r n"]:
        """Project keys to the coordinates of the Cholesky factor."""
        keys = keys.double()
        return keys if self.basis is None else self.basis.mT @ keys

    def inverse_times(self, reduced: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """Solve with the Cholesky factor: return A⁻¹ times reduced keys."""
        if self.factor is None:
            return reduced / self.ridge
        return torch.cholesky_solve(reduced, self.factor)

    def with_keys(self, keys: Float[Tensor, "f n"]) -> "Preserved":
        """Return A + KKᵀ, with further keys to preserve, by a low-rank Cholesky update.

        Args:
            keys: One column per key.

        Raises:
            SolveError: If a key is not finite.
        """
        reduced = self.reduce(keys)
        if not bool(torch.isfinite(reduced).all()):
            raise SolveError(f"{self.where}: a key to preserve is not finite; undo its edit")
        if self.factor is None:
            size = len(reduced)
            plain = self.ridge**0.5 * torch.eye(size, dtype=reduced.dtype, device=reduced.device)
            return replace(self, factor=add_keys(plain, reduced))
        return replace(self, factor=add_keys(self.factor, reduced))

    def cholesky_with(self, reduced: Float[Tensor, "r n"]) -> Float[Tensor, "r r"]:
        """Return the lower Cholesky factor of A + KKᵀ."""
        if self.factor is None:
            size = len(reduced)
            total = self.ridge * torch.eye(size, dtype=reduced.dtype, device=reduced.device)
        else:
            total = self.factor @ self.factor.mT
        return _cholesky(total + reduced @ reduced.mT, self.where)


def least_squares(
    keys: Float[Tensor, "f n"],
    residuals: Float[Tensor, "d n"],
    preserved: Preserved,
    mode: SolveMode = "ridge",
    damping: float | None = None,
) -> Solution:
    r"""Solve for the least-squares update that writes residuals at keys and preserves the rest.

    ``ridge`` trades the two off, :math:`\Delta = R K^\top (A + K K^\top)^{-1}` (MEMIT eq. 14).
    ``equality`` writes exactly, :math:`\Delta = R (K^\top A^{-1} K + \alpha I)^{-1} K^\top A^{-1}`
    with :math:`\alpha` = ``damping`` (ROME eq. 2 for one key, EMMET for many); it is the ridge
    solution for :math:`\lambda \to 0`, found through the n × n Gram matrix because a tiny
    :math:`\lambda` is ill-conditioned. For fewer keys than columns ``ridge`` uses the Gram matrix
    too (Woodbury), with :math:`\alpha = 1`.

    Args:
        keys: Inputs of the layer, one column per key.
        residuals: Wanted change of the layer's output at each key.
        preserved: Factored system of what to preserve.
        mode: ``ridge`` or ``equality``.
        damping: α of ``equality``; 0 unless given.

    Returns:
        The update as factors, in float64.

    Raises:
        SolveError: If keys or residuals are not finite, or the system is not positive definite.
        ValueError: If ``damping`` is given for ``ridge``.

    Example:
        >>> keys, residuals = torch.eye(3)[:, :1], torch.ones(2, 1)
        >>> update = least_squares(keys, residuals, Preserved.of(torch.eye(3)))
        >>> (update.left @ update.right).float()
        tensor([[0.5000, 0.0000, 0.0000],
                [0.5000, 0.0000, 0.0000]])
    """
    if mode == "ridge" and damping is not None:
        raise ValueError("`damping` belongs to mode='equality'; for 'ridge' weigh the moment")
    for name, value in (("keys", keys), ("residuals", residuals)):
        if not bool(torch.isfinite(value).all()):
            raise SolveError(
                f"{preserved.where}: the {name} of {_columns(value)} hold a number that is not "
                f"finite, since {_NOT_FINITE[name]}; load the model in float32 or bfloat16, undo "
                "the edit that damaged it, or leave out the request that it fails at"
            )
    R, reduced = residuals.double(), preserved.reduce(keys)
    left, inverse = R, None
    if mode == "ridge" and reduced.shape[1] >= reduced.shape[0]:
        # With more keys than outputs the update itself is the smaller factor.
        if len(R) < reduced.shape[1]:
            left = torch.eye(len(R), dtype=R.dtype, device=R.device)
        wanted = reduced @ R.mT if left is not R else reduced
        right = torch.cholesky_solve(wanted, preserved.cholesky_with(reduced)).mT
    else:
        half = preserved.inverse_times(reduced)
        gram = reduced.mT @ half
        gram = (gram + gram.mT) / 2
        gram.diagonal().add_(1.0 if mode == "ridge" else damping or 0.0)
        factor = _cholesky(gram, f"{preserved.where}, {mode} over {len(gram)} keys")
        right = torch.cholesky_solve(half.mT, factor)
        inverse = torch.cholesky_inverse(factor)
    if preserved.basis is not None:
        right = right @ preserved.basis.mT
    rest = R - torch.linalg.multi_dot([left, right, keys.double()])
    unwritten = float(rest.norm() / R.norm()) if bool(R.any()) else 0.0
    return Solution(left, right, preserved.condition, unwritten, inverse)


def _columns(value: Float[Tensor, "f n"]) -> str:
    """Return how many columns hold a number that is not finite, in words."""
    wrong = int((~torch.isfinite(value)).any(0).sum())
    return f"{wrong} of {value.shape[1]} columns"


def _cholesky(matrix: Tensor, where: str) -> Tensor:
    """Return the lower Cholesky factor of a symmetric matrix."""
    factor: Tensor
    # LAPACK wants columns; the transpose of a matrix of rows has them without another copy.
    factor, info = torch.linalg.cholesky_ex(matrix.mT)
    # An entry that is not finite propagates to the diagonal of its row.
    if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
        if not bool(torch.isfinite(matrix).all()):
            raise SolveError(f"{where}: the system is not finite; check its statistics, {_REMEDY}")
        raise SolveError(
            f"{where}: the {len(matrix)} × {len(matrix)} system is not positive definite "
            f"(row {int(info)}); {_REMEDY}"
        )
    return factor
