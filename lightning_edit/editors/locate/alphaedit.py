"""AlphaEdit: Fang et al., Null-Space Constrained Knowledge Editing, ICLR 2025, arXiv 2410.02355."""

import logging
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.functional.nullspace import Spectrum, ThresholdKind
from lightning_edit.functional.solve import Preserved
from lightning_edit.models.view import ModelView
from lightning_edit.statistics.cache import spectra_in

log = logging.getLogger(__name__)


class AlphaEdit(MultiLayerEditor):
    r"""Write only along directions of key space that ordinary text hardly uses.

    :math:`\Delta = R K^\top P\,(P (K K^\top + \sum K_p K_p^\top) P + \mu I)^{-1}` with P the
    projector on the null space of the corpus keys; :math:`\sum K_p K_p^\top` keeps the facts of
    earlier edits. Solved in the coordinates of the null space, where it is a symmetric positive
    definite system.

    Args:
        norm_weight: μ, the weight of ‖Δ‖² (``L2``): 10 in the authors' configs, 1 in the paper.
        null_threshold: Directions whose second moment is below are free.
        null_threshold_kind: ``relative``: the threshold is a share of the mean eigenvalue, which
            fits models whatever the scale of their activations. ``absolute``, as published (0.02
            in the authors' configs, 0.01 in the paper): it is an eigenvalue.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        keep_history: Whether later batches leave the keys of earlier ones alone.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        As in the authors' code, an edit's keys are read again on the edited model before they
        enter the history. The relative threshold is this library's: 0.02 leaves one of 640
        directions free in the first block of the embedded model, and half of them in the next.
        Null spaces are read off spectra that ``lightning-edit stats --projector`` has stored beside
        the moments, or found at binding: under a second for a width of 1024, minutes for 10,000.
        With ``statistics="identity"`` no direction is known to be used, so all are free. λC has no
        part in the system.
    """

    history_by_default: ClassVar[bool] = True

    def __init__(
        self,
        norm_weight: float = 10.0,
        null_threshold: float = 0.1,
        null_threshold_kind: ThresholdKind = "relative",
        clamp: float = 0.75,
        keep_history: bool = True,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        if norm_weight <= 0:
            raise ValueError(
                f"norm_weight makes the system solvable, expected more than 0, got {norm_weight}"
            )
        self.norm_weight = norm_weight
        self.null_threshold = null_threshold
        self.null_threshold_kind: ThresholdKind = null_threshold_kind
        self._free: dict[int, Tensor] = {}

    def on_bind(self) -> None:
        """Find the null spaces of the unedited model's keys."""
        super().on_bind()
        self._free = {}
        device = self.language_model.device
        stored = spectra_in(self._files, self.view)
        for layer, moment in self._moments.items():
            if moment is not None:
                where = self.view.parameter(layer)
                spectrum = stored.get(layer) or Spectrum.of(moment.to(device), where)
                basis = spectrum.null_space(self.null_threshold, self.null_threshold_kind, where)
                log.info("%s: %d of %d directions are free", where, basis.shape[1], len(basis))
                self._free[layer] = basis.to(moment.device)

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor the history and μI inside the null space."""
        device = self.language_model.device

        def of(history: Tensor | None) -> Preserved:
            return Preserved.of(
                history=None if history is None else history.to(device),
                ridge=self.norm_weight,
                basis=self._free[layer].to(device) if layer in self._free else None,
                where=self.view.parameter(layer),
            )

        return of(None) if self.past is None else self.past.factored(layer, of)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate memory beside the model: as its relatives, and the null spaces in float64."""
        return super().memory_bytes(view, layers) + 8 * len(layers) * view.intermediate_size**2
