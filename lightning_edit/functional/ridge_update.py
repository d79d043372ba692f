r"""Ridge-regression update of a layer from per-token output changes, with its analytic gradient.

MALMEN (arXiv 2311.04661) writes the changes D at the keys K of a layer by
:math:`S = (K^\top K + e^\lambda I)^{-1} K^\top D` and trains what predicts D, and :math:`\lambda`,
through that solve, without an autograd graph of it.

Axis names: ``n`` -- tokens; ``d_in``/``d_out`` -- an edited weight acts as ``y = W k``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.exceptions import SolveError
from lightning_edit.functional.solve import Preserved, least_squares


@dataclass(frozen=True)
class RidgeUpdate:
    r"""Update :math:`\Delta = D^\top R` of one layer, and what its gradient needs.

    Make it with :meth:`solve`.

    Args:
        shifts: Wanted output changes D, in float64.
        readout: :math:`R = K (K^\top K + e^\lambda I)^{-1}`, in float64: what the update adds to
            the output at a key k is :math:`D^\top R k`.
        unwritten: :math:`D - K S`: what the ridge keeps from being written.
    """

    shifts: Float[Tensor, "n d_out"]
    readout: Float[Tensor, "n d_in"]
    unwritten: Float[Tensor, "n d_out"]

    @classmethod
    def solve(
        cls,
        keys: Float[Tensor, "n d_in"],
        shifts: Float[Tensor, "n d_out"],
        log_ridge: float,
        where: str = "the edited layer",
    ) -> "RidgeUpdate":
        r"""Solve for the update that writes ``shifts`` at ``keys``.

        Args:
            keys: Inputs of the layer.
            shifts: Wanted change of its output at each of them.
            log_ridge: :math:`\lambda`; the ridge is :math:`e^\lambda`.
            where: Name of the layer, for messages.

        Raises:
            SolveError: If keys or shifts are not finite, or the system is not positive definite.

        Example:
            >>> one = torch.ones(1, 1)
            >>> RidgeUpdate.solve(one, 3 * one, log_ridge=0.0).dense()
            tensor([[1.5000]], dtype=torch.float64)
        """
        if not bool(torch.isfinite(shifts).all()):
            raise SolveError(
                f"{where}: the wanted changes hold a number that is not finite; train the network "
                "again with a lower learning rate, or load the model in float32"
            )
        each = torch.eye(len(keys), dtype=torch.float64, device=keys.device)
        ridge = Preserved.of(ridge=math.exp(log_ridge), where=where)
        solution = least_squares(keys.mT, each, ridge)
        wide = shifts.double()
        written = keys.double() @ (solution.right.mT @ wide)
        return cls(wide, solution.right, wide - written)

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """Return the update as a matrix, in float64."""
        return self.shifts.mT @ self.readout

    def gradient_of_shifts(self, gradient: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "n d_out"]:
        r"""Return :math:`\partial L / \partial D = K (K^\top K + e^\lambda I)^{-1} \Gamma`.

        Args:
            gradient: :math:`\Gamma^\top`, gradient of the loss by the edited weight.
        """
        return self.readout @ gradient.double().mT

    def gradient_of_log_ridge(
        self, gradient_of_shifts: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, ""]:
        r"""Return :math:`\partial L / \partial \lambda`.

        It is :math:`-e^\lambda \sum M \odot S` with :math:`M = (K^\top K + e^\lambda I)^{-1}
        \Gamma`, which equals :math:`-\langle \partial L / \partial D, D - K S \rangle`.

        Args:
            gradient_of_shifts: Of :meth:`gradient_of_shifts`, or from autograd.
        """
        return -(gradient_of_shifts.double() * self.unwritten).sum()
