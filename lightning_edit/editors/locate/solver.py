"""Solvers of a layer: how keys and residuals become an update of the down-projection.

A method names its solver with its hyper-parameters, ``LeastSquares(moment_weight)``. The formula
itself is :func:`~lightning_edit.functional.solve.least_squares`.

Axis names: ``n`` -- keys; ``d`` -- hidden width; ``f`` -- width of a key; ``r`` -- directions of
the null space.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.edited_layer import EditedLayer, PenaltyWeight
from lightning_edit.edits.delta import LowRank, WeightUpdate
from lightning_edit.functional.nullspace import Spectrum, ThresholdKind
from lightning_edit.functional.solve import Preserved, Solution, SolveMode, least_squares
from lightning_edit.models.view import ModelView
from lightning_edit.statistics.cache import spectra_in

log = logging.getLogger(__name__)

UpdateTransform = Callable[[EditedLayer, Solution], WeightUpdate]
"""Transform of Δ: makes a layer's weight update from its solution."""


def low_rank(layer: EditedLayer, solution: Solution) -> WeightUpdate:
    """Return the solution itself as a low-rank update: no transform of Δ.

    Args:
        layer: The layer.
        solution: Its solved system.
    """
    return LowRank(solution.left.float(), solution.right.float())


class Solver(ABC):
    """Solver of one layer's linear system."""

    @abstractmethod
    def solve(
        self, layer: EditedLayer, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Solve for the update that writes residuals at keys.

        Args:
            layer: The layer, with what its update must preserve.
            keys: Inputs of the down-projection, one column per request.
            residuals: Wanted change of its output at each key.
        """

    def on_bind(
        self, layers: Mapping[int, EditedLayer], files: Mapping[int, Path], view: ModelView
    ) -> None:
        """Prepare the layers of a newly bound model; the default does nothing.

        Args:
            layers: The edited layers, by block index.
            files: Files of their key statistics.
            view: The model's structure.
        """
        del layers, files, view

    def chosen(self, layers: Mapping[int, EditedLayer]) -> dict[str, list[float]]:
        """Return the values that ``auto`` settings have for prepared layers; none by default.

        Args:
            layers: The edited layers, by block index.

        Returns:
            By argument, one value a layer.
        """
        del layers
        return {}


@dataclass(frozen=True)
class NullSpace:
    """Projector P on the null space of the corpus keys (AlphaEdit).

    Args:
        threshold: What is small, see :meth:`Spectrum.null_space`.
        kind: Whether the threshold is an eigenvalue (``absolute``), ``relative`` to their mean, or
            the share of their sum that the small ones make up together (``energy``).
    """

    threshold: float
    kind: ThresholdKind

    def restrict(
        self, layers: Mapping[int, EditedLayer], files: Mapping[int, Path], view: ModelView
    ) -> None:
        """Restrict the updates of layers to the null spaces of their keys.

        Null spaces come from stored eigendecompositions, or are computed.

        Args:
            layers: The edited layers; one without a second moment stays free.
            files: Files of their key statistics.
            view: The model's structure.
        """
        stored = spectra_in(files, view)
        for number, layer in layers.items():
            if layer.moment is None:
                continue
            where = layer.parameter
            spectrum = stored.get(number) or Spectrum.of(layer.moment.to(layer.device), where)
            basis = spectrum.null_space(self.threshold, self.kind, where)
            log.info("%s: %d of %d directions are free", where, basis.shape[1], len(basis))
            layer.null_space = basis.to(layer.moment.device)
            layer.null_energy = spectrum.energy(basis.shape[1])
            layer.null_thresholds = spectrum.thresholds(basis.shape[1])


@dataclass(frozen=True)
class LeastSquares(Solver):
    r"""Least squares that preserves corpus keys and the keys of earlier edits.

    .. math::
        \min_\Delta \|\Delta K - R\|^2 + \lambda\,\mathrm{tr}(\Delta C \Delta^\top)
        + \|\Delta K_p\|^2 + \mu\|\Delta\|^2 \quad\text{subject to}\quad \Delta = \Delta P

    Args:
        moment_weight: λ, the weight of the second moment C, or of the identity that stands for it;
            ``auto``: by rule, see :class:`EditedLayer`; ``None``: the width of a key.
        norm_weight: μ, the weight of ‖Δ‖²; ``auto``: by rule.
        null_space: P; ``None``: all directions are free.
        mode: ``ridge`` trades writing and preserving off; ``equality`` writes exactly.
        damping: α of ``equality``, added to the diagonal of the keys' Gram matrix; a single key's
            system is always solvable and gets none.
    """

    moment_weight: PenaltyWeight = 1.0
    norm_weight: float | Literal["auto"] = 0.0
    null_space: NullSpace | None = None
    mode: SolveMode = "ridge"
    damping: float = 0.0

    def on_bind(
        self, layers: Mapping[int, EditedLayer], files: Mapping[int, Path], view: ModelView
    ) -> None:
        """Find the null spaces of a newly bound model's keys."""
        if self.null_space is not None:
            self.null_space.restrict(layers, files, view)

    def chosen(self, layers: Mapping[int, EditedLayer]) -> dict[str, list[float]]:
        """Return the weights that ``auto`` stands for."""
        found: dict[str, list[float]] = {}
        if self.moment_weight == "auto":
            found["moment_weight"] = [one.moment_weight("auto") for one in layers.values()]
        if self.norm_weight == "auto":
            found["norm_weight"] = [
                one.norm_weight("auto", self.moment_weight) for one in layers.values()
            ]
        return found

    def preserved(self, layer: EditedLayer) -> Preserved:
        """Return the factored system of what a layer's update must preserve."""
        return layer.preserved(self.moment_weight, self.norm_weight)

    def solve(
        self, layer: EditedLayer, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Solve the layer's least-squares system."""
        damping = None
        if self.mode == "equality":
            damping = self.damping if keys.shape[1] > 1 else 0.0
        return least_squares(keys, residuals, self.preserved(layer), self.mode, damping)
