"""Edited layer of a bound editor: what a solver sees of a down-projection.

Axis names: ``f`` -- width of a key, the down-projection's input; ``r`` -- directions of the null
space; ``s`` -- some entries of a key.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.locate.key_history import KeyHistory
from lightning_edit.functional.solve import Preserved
from lightning_edit.models.weights import weight


@dataclass
class EditedLayer:
    """Key statistics of one edited layer, its keys of earlier edits, and the factored system.

    Args:
        number: Block index.
        parameter: Dotted name of the down-projection's weight.
        model: The language model.
        moment: Second moment C of the keys; ``None`` stands for the identity.
        past: Keys of the edits in force; ``None`` if later edits need not preserve them.
        null_space: Orthonormal columns that span the directions an update may act along; ``None``:
            all directions.
    """

    number: int
    parameter: str
    model: Any
    moment: Float[Tensor, "f f"] | None
    past: KeyHistory | None = None
    null_space: Float[Tensor, "f r"] | None = None
    _factors: dict[tuple[float | None, float], Preserved] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Width of a key."""
        return weight(self.model, self.parameter).shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        device: torch.device = self.model.device
        return device

    def forget_factors(self) -> None:
        """Drop the cached factors, after a change of the edits in force."""
        self._factors.clear()

    def preserved(
        self,
        moment_weight: float | None,
        norm_weight: float = 0.0,
        neurons: Int[Tensor, " s"] | None = None,
    ) -> Preserved:
        """Factor what an update must preserve: λC + Σ KKᵀ + μI inside the null space (Cholesky).

        Without C, λI takes its place. The factor is cached until the edits in force change, unless
        it is that of some neurons only.

        Args:
            moment_weight: λ; ``None``: the width of a key.
            norm_weight: μ.
            neurons: Key entries that are written; ``None``: all.
        """
        if neurons is not None:
            return self._factor(moment_weight, norm_weight, neurons)
        wanted = (moment_weight, norm_weight)
        if wanted not in self._factors:
            self._factors[wanted] = self._factor(moment_weight, norm_weight, None)
        return self._factors[wanted]

    def _factor(
        self, moment_weight: float | None, norm_weight: float, neurons: Tensor | None
    ) -> Preserved:
        lam = float(self.width) if moment_weight is None else moment_weight

        def factor(history: Tensor | None) -> Preserved:
            return Preserved.of(
                self._submatrix(self.moment, neurons),
                lam,
                self._submatrix(history, neurons),
                norm_weight + (lam if self.moment is None else 0.0),
                basis=None if self.null_space is None else self.null_space.to(self.device),
                where=self.parameter,
            )

        if self.past is None:
            return factor(None)
        # The written entries differ from batch to batch, so their factor gets no low-rank updates.
        if neurons is not None:
            return factor(self.past.keys(self.number))
        return self.past.factor_with_keys(self.number, factor)

    def _submatrix(self, matrix: Tensor | None, neurons: Tensor | None) -> Tensor | None:
        """Return a matrix, or its submatrix of some entries, on the model's device."""
        if matrix is None:
            return None
        placed = matrix.to(self.device)
        return placed if neurons is None else placed[neurons][:, neurons]
