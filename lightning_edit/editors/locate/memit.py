"""MEMIT: Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, arXiv 2210.07229."""

from typing import Any, ClassVar, Literal

from lightning_edit.editors.locate.edited_layer import PenaltyWeight
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import EVEN_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares


class MEMIT(MultiLayerEditor):
    r"""Mass editing: many facts in one batch, spread over the MLPs of several consecutive blocks.

    For each layer, lowest first: :math:`\Delta = R K^\top (\lambda C + K K^\top)^{-1}` (eq. 14)
    with R this layer's part of the remaining residual to the targets (eq. 20).

    Args:
        moment_weight: λ, the number of corpus tokens that the second moment C stands for: 15 000
            for GPT-J, 20 000 for GPT-2 XL in the authors' configs. ``auto``: a ninth of the width
            of a key, so that nine tenths of a typical key's residual are written, see
            :class:`~lightning_edit.editors.locate.edited_layer.EditedLayer`. ``None``: the width of
            a key, which writes half; for GPT-J it is 16 384.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search: 0.75 in the authors' configs; ``auto``: also
            more, where that keeps an answer out of reach.
        keep_history: Add the keys of earlier edits to λC, so that later batches preserve them.
            The paper does not; AlphaEdit's authors compare against it as ``MEMIT_seq``.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        λ is relative to the width f of a key: the share f / (λ + f) of a typical key's residual is
        written, so a fixed λ that suits a large model suppresses the edits of a small one.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block")
    schedule: ClassVar[ResidualSchedule] = EVEN_SPLIT  # eq. 20

    def __init__(
        self,
        moment_weight: PenaltyWeight = "auto",
        clamp: float | Literal["auto"] = "auto",
        keep_history: bool = False,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        self.moment_weight = moment_weight
        self.solver = LeastSquares(moment_weight)  # eq. 14
