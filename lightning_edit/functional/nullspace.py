"""Null space of a second moment: directions of key space that ordinary text hardly uses.

Axis names: ``f`` -- width of a key; ``r`` -- directions kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.exceptions import SolveError

ThresholdKind = Literal["absolute", "relative", "energy"]


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a second moment: gives its null space for any threshold.

    Make it with :meth:`of`.

    Args:
        values: Eigenvalues, ascending, float64.
        vectors: Eigenvectors as orthonormal columns, float64.
    """

    values: Float[Tensor, " f"]
    vectors: Float[Tensor, "f f"]

    @classmethod
    def of(cls, moment: Float[Tensor, "f f"], where: str = "the edited layer") -> "Spectrum":
        """Compute the eigendecomposition of a second moment.

        Args:
            moment: Uncentred second moment E[k kᵀ].
            where: Name of the layer, for messages.

        Raises:
            SolveError: If the moment is not finite.
        """
        symmetric = (moment.double() + moment.double().mT) / 2
        if not bool(torch.isfinite(symmetric).all()):
            raise SolveError(
                f"{where}: the second moment is not finite; collect the statistics again"
            )
        values, vectors = torch.linalg.eigh(symmetric)
        return cls(values, vectors)

    def null_space(
        self,
        threshold: float,
        kind: ThresholdKind = "absolute",
        where: str = "the edited layer",
    ) -> Float[Tensor, "f r"]:
        r"""Return a null-space basis: eigenvectors of small eigenvalues (AlphaEdit, 2410.02355).

        :math:`P = U U^\top` projects onto their span; a key of ordinary text has about
        ``eigenvalue`` of its squared length in each of these directions.

        Args:
            threshold: Eigenvalues below it are small.
            kind: ``absolute``: the threshold is an eigenvalue, so what is kept depends on the
                scale of the model's activations. ``relative``: it is a share of the mean
                eigenvalue. ``energy``: the smallest eigenvalues are small that together make up
                this share of their sum, the mean squared norm of a key, so that something is kept
                of a flat spectrum too.
            where: Name of the layer, for messages.

        Returns:
            Orthonormal columns U, in float64.

        Raises:
            SolveError: If no eigenvalue is small enough.

        Example:
            >>> Spectrum.of(torch.diag(torch.tensor([4.0, 1e-3]))).null_space(0.02).abs()
            tensor([[0.],
                    [1.]], dtype=torch.float64)
        """
        if kind == "energy":
            sums = self.values.clamp_min(0).cumsum(0)
            kept = sums < threshold * sums[-1]
            limit = threshold * float(sums[-1])
        else:
            limit = threshold * (float(self.values.mean()) if kind == "relative" else 1.0)
            kept = self.values < limit
        if not bool(kept.any()):
            raise SolveError(
                f"{where}: no eigenvalue of the second moment is below {limit:g} (the smallest is "
                f"{float(self.values[0]):g}), so there is no null space to edit in; raise the "
                "threshold, or make it relative to the mean eigenvalue"
            )
        basis: Tensor = self.vectors[:, kept]
        return basis

    def energy(self, directions: int) -> float:
        """Return the mean squared norm that a key has in the directions of small eigenvalues.

        Args:
            directions: Number of these directions.

        Example:
            >>> Spectrum.of(torch.diag(torch.tensor([4.0, 1.0, 2.0]))).energy(2)
            3.0
        """
        return float(self.values[:directions].clamp_min(0).sum())

    def thresholds(self, directions: int) -> dict[ThresholdKind, float]:
        """Return a threshold of each kind with which :meth:`null_space` has so many directions.

        It is a thousandth above the last of them, or half way to the next one if that is closer.

        Args:
            directions: Number of directions, 1 or more.

        Example:
            >>> Spectrum.of(torch.diag(torch.tensor([4.0, 1.0, 2.0]))).thresholds(2)["absolute"]
            2.002
        """
        sums = self.values.clamp_min(0).cumsum(0)

        def above(values: Tensor) -> float:
            ends: list[float] = values[directions - 1 : directions + 1].tolist()
            margins = [abs(ends[0]) / 1000, *((one - ends[0]) / 2 for one in ends[1:])]
            return ends[0] + min(margins)

        bound = above(self.values)
        return {
            "absolute": bound,
            "relative": bound / float(self.values.mean()),
            "energy": above(sums) / float(sums[-1]),
        }
