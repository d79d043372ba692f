"""EMMET: Gupta et al., A Unified Framework for Model Editing, EMNLP 2024, arXiv 2403.14236."""

from typing import Any, ClassVar, Literal

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import EVEN_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.rome import ROME
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares


class EMMET(MultiLayerEditor):
    r"""Batched ROME: many facts at once under an equality constraint, where MEMIT has a soft one.

    :math:`\Delta = R (K^\top A^{-1} K + \alpha I)^{-1} K^\top A^{-1}` with
    :math:`A = \lambda C + \mu I`. For :math:`\alpha > 0` this is MEMIT's update with the weight
    :math:`\alpha\lambda`.

    Args:
        moment_weight: λ; no effect without damping. 1000 for GPT-2 XL, 1 for GPT-J and Llama 2 in
            the authors' configs.
        damping: α, keeps systems with near-duplicate keys solvable; not applied to a single fact
            (0.1 in the authors' configs).
        norm_weight: μ, weight of ‖Δ‖² (0 in the authors' configs).
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search: 0.75 in the authors' configs; ``auto``: also
            more, where that keeps an answer out of reach.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        EasyEdit's copy adds the damping to a single fact too.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block")
    schedule: ClassVar[ResidualSchedule] = EVEN_SPLIT

    def __init__(
        self,
        moment_weight: float = 1000.0,
        damping: float = 0.1,
        norm_weight: float = 0.0,
        clamp: float | Literal["auto"] = "auto",
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, **search)
        if damping < 0 or norm_weight < 0:
            raise ValueError(
                "damping and norm_weight are weights, expected 0 or more, got "
                f"damping={damping}, norm_weight={norm_weight}"
            )
        self.moment_weight = moment_weight
        self.damping = damping
        self.norm_weight = norm_weight
        self.solver = LeastSquares(moment_weight, norm_weight, mode="equality", damping=damping)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return ROME's layer (published: GPT-J 5 of 28, Llama 2 5 of 32, GPT-2 XL 17 of 48).

        Never the last block: a target there could not act on later tokens.
        """
        return [min(*ROME.default_layers(num_blocks), max(0, num_blocks - 2))]
