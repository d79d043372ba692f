"""Edited layer of a bound editor: what a solver sees of a down-projection.

Axis names: ``f`` -- width of a key, the down-projection's input; ``r`` -- directions of the null
space; ``s`` -- some entries of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.locate.key_history import KeyHistory
from lightning_edit.functional.auto import weight_for_share
from lightning_edit.functional.nullspace import ThresholdKind
from lightning_edit.functional.solve import Preserved
from lightning_edit.models.weights import weight

#: Weight of a penalty: a number; ``auto``: by rule, see :class:`EditedLayer`; of λ also ``None``:
#: the width of a key.
PenaltyWeight = float | Literal["auto"] | None

#: Share of a typical key's residual that ``auto`` lets one layer write. Chosen on 20 facts each of
#: the embedded model and a small GPT-2; what it does elsewhere: docs/settings.md.
WRITTEN_SHARE = 0.9
#: μ of ``auto`` where no statistics say how long a key is: AlphaEdit's published value.
PUBLISHED_NORM_WEIGHT = 10.0


@dataclass
class EditedLayer:
    r"""Key statistics of one edited layer, its keys of earlier edits, and the factored system.

    Args:
        number: Block index.
        parameter: Dotted name of the down-projection's weight.
        model: The language model.
        moment: Second moment C of the keys; ``None`` stands for the identity.
        past: Keys of the edits in force; ``None`` if later edits need not preserve them.
        null_space: Orthonormal columns that span the directions an update may act along; ``None``:
            all directions.
        null_energy: Mean squared norm of a corpus key in the null space, the sum of its
            eigenvalues; ``None``: all directions are free.
        null_thresholds: Threshold of each kind that gives this null space.

    Note:
        ``auto`` weights solve for the share :data:`WRITTEN_SHARE` of a typical key's residual. λ
        is a ninth of the width f of a key, since :math:`E[k^\top C^{-1} k] = f` for keys of the
        text that C is from; μ is a ninth of ``null_energy``, or beside λC a ninth of its mean
        eigenvalue. Both are fixed when the editor is bound, so they are the same for every batch of
        a sequence.
    """

    number: int
    parameter: str
    model: Any
    moment: Float[Tensor, "f f"] | None
    past: KeyHistory | None = None
    null_space: Float[Tensor, "f r"] | None = None
    null_energy: float | None = None
    null_thresholds: Mapping[ThresholdKind, float] = field(default_factory=dict)
    _factors: dict[tuple[float, float], Preserved] = field(default_factory=dict)

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

    def moment_weight(self, given: PenaltyWeight) -> float:
        """Return λ as a number.

        Args:
            given: λ, ``auto``, or ``None``: the width of a key.
        """
        width = float(self.width)
        if given == "auto":
            return weight_for_share(width, WRITTEN_SHARE)
        return width if given is None else given

    def norm_weight(
        self, given: float | Literal["auto"], moment_weight: PenaltyWeight = 0.0
    ) -> float:
        """Return μ as a number.

        Args:
            given: μ, or ``auto``.
            moment_weight: λ of the same system, see :meth:`moment_weight`.
        """
        if given != "auto":
            return given
        if self.null_energy is not None:
            return weight_for_share(self.null_energy, WRITTEN_SHARE)
        lam = self.moment_weight(moment_weight)
        if lam == 0:
            return PUBLISHED_NORM_WEIGHT
        mean = 1.0 if self.moment is None else float(self.moment.diagonal().double().mean())
        return weight_for_share(lam * mean, WRITTEN_SHARE)

    def preserved(
        self,
        moment_weight: PenaltyWeight,
        norm_weight: float | Literal["auto"] = 0.0,
        neurons: Int[Tensor, " s"] | None = None,
    ) -> Preserved:
        """Factor what an update must preserve: λC + Σ KKᵀ + μI inside the null space (Cholesky).

        Without C, λI takes its place. The factor is cached until the edits in force change, unless
        it is that of some neurons only.

        Args:
            moment_weight: λ, see :meth:`moment_weight`.
            norm_weight: μ, see :meth:`norm_weight`.
            neurons: Key entries that are written; ``None``: all.
        """
        lam = self.moment_weight(moment_weight)
        wanted = (lam, self.norm_weight(norm_weight, lam))
        if neurons is not None:
            return self._factor(*wanted, neurons)
        if wanted not in self._factors:
            self._factors[wanted] = self._factor(*wanted, None)
        return self._factors[wanted]

    def _factor(self, lam: float, norm_weight: float, neurons: Tensor | None) -> Preserved:
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
