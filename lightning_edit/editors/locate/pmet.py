"""PMET: Li et al., Precise Model Editing in a Transformer, AAAI 2024, arXiv 2308.08742."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from lightning_edit.editors.locate.edited_layer import PenaltyWeight
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import SQRT_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import EarlyStopping, TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares


class PMET(MultiLayerEditor):
    r"""MEMIT with separate attention and MLP targets, of which only the MLP target is written.

    Two vectors are searched, for the outputs of attention and of the MLP of the last edited block.
    The MLP's residual is spread over the layers by the square root of their number:
    :math:`\Delta = \frac{R}{\sqrt{|L| - i}} K^\top (\lambda C + K K^\top)^{-1}`.

    Args:
        moment_weight: λ: 6000 for GPT-J, 15 000 for GPT-NeoX in the authors' configs; ``auto``: a
            ninth of the width of a key, as in MEMIT; ``None``: the width of a key.
        ease: Weight of the answer loss in the pass after one in which the target was the top-1
            answer in all contexts (0.1 in the authors' code).
        calm: Early stopping: a search ends when the target is top-1 and the KL term is at most this
            (0.01).
        lr: Adam's learning rate (0.2 for GPT-J in the authors' configs); ``auto``: see
            :class:`~lightning_edit.editors.locate.multi_layer.MultiLayerEditor`.
        steps: Forward passes of the search (30 for GPT-J).
        kl_factor: Weight of the KL divergence (1.0 for GPT-J).
        clamp: Largest norm of each vector relative to the output it is added to: 0.75 in the
            authors' configs; ``auto``: also more, where that keeps an answer out of reach.
        keep_history: Whether later batches preserve the keys of earlier ones; not in the paper.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        As in the authors' code, the attention vector has no part in the update, so its share of the
        answer in the search is missing after the edit: by its defaults PMET writes 7 of 20 facts of
        a small GPT-2 and 1 of 20 of the embedded model, of which MEMIT, whose one vector is written
        whole, writes 18 and 19. The authors' code tests two probabilities for equality; here token
        ids are compared.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("attention+mlp")
    schedule: ClassVar[ResidualSchedule] = SQRT_SPLIT
    published_lr: ClassVar[float] = 0.2

    def __init__(
        self,
        moment_weight: PenaltyWeight = "auto",
        ease: float = 0.1,
        calm: float = 0.01,
        lr: float | Literal["auto"] = "auto",
        steps: int = 30,
        kl_factor: float = 1.0,
        clamp: float | Literal["auto"] = "auto",
        keep_history: bool = False,
        **search: Any,
    ) -> None:
        super().__init__(
            clamp=clamp,
            keep_history=keep_history,
            lr=lr,
            steps=steps,
            kl_factor=kl_factor,
            **search,
        )
        self.moment_weight = moment_weight
        self.ease = ease
        self.calm = calm
        self.objective = replace(
            self.objective, early_stopping=EarlyStopping(answer_weight=ease, max_kl=calm)
        )
        self.solver = LeastSquares(moment_weight)
