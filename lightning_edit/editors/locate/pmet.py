"""PMET: Li et al., Precise Model Editing in a Transformer, AAAI 2024, arXiv 2308.08742."""

import math
from dataclasses import replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.search_objective import EarlyStopping
from lightning_edit.editors.locate.target_search import Targets
from lightning_edit.functional.solve import Preserved
from lightning_edit.inference.suffix.forward import Site


class PMET(MultiLayerEditor):
    r"""MEMIT with a target for the MLP alone: what attention should carry is searched beside it.

    Two vectors are searched, for the outputs of attention and of the MLP of the last edited block.
    Only the MLP's is written, spread over the layers by the square root of their number:
    :math:`\Delta = \frac{R}{\sqrt{|L| - i}} K^\top (\lambda C + K K^\top)^{-1}`.

    Args:
        moment_weight: λ: 6000 for GPT-J, 15 000 for GPT-NeoX in the authors' configs; ``None``: the
            width of a key.
        ease: Weight of the answer in a pass after one in which the target was the likeliest answer
            in all contexts (0.1 in the authors' code).
        calm: A search ends when that holds and the divergence's term is at most this (0.01).
        lr: Adam's learning rate (0.2 for GPT-J in the authors' configs).
        steps: Passes of the search (30 for GPT-J).
        kl_factor: Weight of the divergence (1.0 for GPT-J).
        clamp: Largest norm of each vector over that of the output it is added to (0.75).
        keep_history: Whether later batches leave the keys of earlier ones alone; the paper has
            no history.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        As in the authors' code, the vector for attention has no part in the update, so the share of
        the answer that it carried in the search is missing afterwards. The authors' comparison of
        two probabilities for equality is one of token ids here.
    """

    site: ClassVar[Site] = "attention+mlp"

    def __init__(
        self,
        moment_weight: float | None = None,
        ease: float = 0.1,
        calm: float = 0.01,
        lr: float = 0.2,
        steps: int = 30,
        kl_factor: float = 1.0,
        clamp: float = 0.75,
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
        self.objective = replace(
            self.objective, early_stopping=EarlyStopping(answer_weight=ease, max_kl=calm)
        )

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor λC and the history."""
        return self.factored(layer, moment, self.moment_weight)

    def residual_divisor(self, remaining: int) -> float:
        """Return the square root of the number of layers left."""
        return math.sqrt(remaining)

    def target(self, targets: Targets) -> Float[Tensor, "n d"]:
        """Return the MLP's targets, which stand behind those of attention."""
        return targets.wanted.double().chunk(2, dim=1)[1]
