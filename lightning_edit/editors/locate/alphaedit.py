"""AlphaEdit: Fang et al., Null-Space Constrained Knowledge Editing, ICLR 2025, arXiv 2410.02355."""

from typing import Any, ClassVar, Literal

from lightning_edit.editors.locate.key_history import HistoryPolicy
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import EVEN_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares, NullSpace
from lightning_edit.functional.nullspace import ThresholdKind
from lightning_edit.models.view import ModelView

#: Share of a corpus key's mean squared norm that the null space of ``auto`` holds.
NULL_ENERGY = 0.3


class AlphaEdit(MultiLayerEditor):
    r"""Null-space constrained editing: write only along key directions that text hardly uses.

    :math:`\Delta = R K^\top P\,(P (K K^\top + \sum K_p K_p^\top) P + \mu I)^{-1}` with P the
    projector on the null space of the corpus keys; :math:`\sum K_p K_p^\top` preserves the facts
    of earlier edits. Solved in the coordinates of the null space, where the system is symmetric
    positive definite.

    Args:
        norm_weight: μ, the weight of ‖Δ‖² (``L2``): 10 in the authors' configs, 1 in the paper.
            ``auto``: a ninth of the mean squared norm that a corpus key has in the null space, so
            that nine tenths of a typical key's residual are written.
        null_threshold: What makes a direction part of the null space. ``auto``: those of the
            smallest eigenvalues that together hold :data:`NULL_ENERGY` of the mean squared norm of
            a corpus key.
        null_threshold_kind: What a number means: ``relative``, a share of the mean eigenvalue,
            below which an eigenvalue is small; ``absolute``, as published (0.02 in the authors'
            configs, 0.01 in the paper), an eigenvalue; ``energy``, the share of their sum that the
            small eigenvalues make up together, as ``auto``.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search: 0.75 in the authors' configs; ``auto``: also
            more, where that keeps an answer out of reach.
        keep_history: Whether later batches preserve the keys of earlier ones.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        As in the authors' code, an edit's keys are read again on the edited model before they enter
        the history. The published threshold depends on the scale of activations: 0.02 leaves one of
        640 directions free in the first block of the embedded model, and half of them in the next;
        the rules of ``auto`` are this library's. Null spaces come from eigendecompositions that
        ``lightning-edit stats --projector`` stored with the moments, or are computed at binding:
        under a second for a width of 1024, minutes for 10,000. With ``statistics="identity"`` all
        directions are free. λC has no part in the system.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block")
    schedule: ClassVar[ResidualSchedule] = EVEN_SPLIT
    history_policy: ClassVar[HistoryPolicy] = HistoryPolicy("edited")

    def __init__(
        self,
        norm_weight: float | Literal["auto"] = "auto",
        null_threshold: float | Literal["auto"] = "auto",
        null_threshold_kind: ThresholdKind = "relative",
        clamp: float | Literal["auto"] = "auto",
        keep_history: bool = True,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        if norm_weight != "auto" and norm_weight <= 0:
            raise ValueError(
                f"norm_weight makes the system solvable, expected more than 0, got {norm_weight}"
            )
        self.norm_weight: float | Literal["auto"] = norm_weight
        self.null_threshold: float | Literal["auto"] = null_threshold
        self.null_threshold_kind: ThresholdKind = null_threshold_kind
        if null_threshold == "auto":
            space = NullSpace(NULL_ENERGY, "energy")
        else:
            space = NullSpace(null_threshold, null_threshold_kind)
        self.solver = LeastSquares(moment_weight=0.0, norm_weight=norm_weight, null_space=space)

    def on_bind(self) -> None:
        """Bind as the family does, and note what the null spaces of ``auto`` come to."""
        super().on_bind()
        found = [one.null_thresholds for one in self.bound_layers.values() if one.null_thresholds]
        if self.null_threshold == "auto" and found:
            self.chose({"null_threshold": [one[self.null_threshold_kind] for one in found]})

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: the family's estimate plus the null spaces in float64."""
        return super().memory_bytes(view, layers) + 8 * len(layers) * view.intermediate_size**2
