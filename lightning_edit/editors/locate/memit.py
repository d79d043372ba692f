"""MEMIT: Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, arXiv 2210.07229."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.functional.solve import Preserved


class MEMIT(MultiLayerEditor):
    r"""Write many associations at once, spread over the MLPs of several consecutive blocks.

    For each layer, lowest first: :math:`\Delta = R K^\top (\lambda C + K K^\top)^{-1}` (eq. 14)
    with R the part of the remaining distance to the targets that this layer is to cover (eq. 20).

    Args:
        moment_weight: λ, how many corpus tokens the second moment C stands for: 15 000 for GPT-J,
            20 000 for GPT-2 XL in the authors' configs. ``None``: as many as a key has numbers,
            which at GPT-J's width is 16 384 and writes half of a typical key's residual.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        keep_history: Add the keys of earlier edits to λC, so that later batches leave them alone.
            The paper does not; AlphaEdit's authors compare against it as ``MEMIT_seq``.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        λ should be read against the width f of a key: of one typical key's residual the share f /
        (λ + f) is written, so a fixed λ that suits a large model silences a small one.
    """

    def __init__(
        self,
        moment_weight: float | None = None,
        clamp: float = 0.75,
        keep_history: bool = False,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        self.moment_weight = moment_weight

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor λC and the history."""
        return self.factored(layer, moment, self.moment_weight)
