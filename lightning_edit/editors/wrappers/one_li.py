"""1-LI: Brown et al., Edit at Your Own Risk, 2023, arXiv 2303.00046."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.ft import FTM
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.editors.written import answers_with
from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.types import EditBatch, Encoded

#: ``alpha="auto"``: the weights that are tried, smallest first.
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class OneLI(UpdateShaper):
    r"""Linear interpolation between the original and the edited weights of a layer.

    :math:`W_\alpha = (1 - \alpha) W_0 + \alpha W_\text{edited}`. From α = 0 to 1 edit success rises
    while the model's robustness falls; choose α on facts outside the test set.

    Args:
        editor: The host; ``None``: FT-M, fine-tuning of one layer, as in the paper.
        alpha: α. In sequential editing it scales each edit's own update. ``auto``: for each batch
            the smallest of :data:`ALPHAS` with which every answer that the host's whole update
            writes is still the first choice of the model; 1 if none is.

    Note:
        Reconstructed: the paper's abstract defines the interpolation, and no code was published.
        The paper edits image models; for any host whose update is linear in its residual, such as
        MEMIT, α scales the residual that is written.
    """

    needs_statistics: ClassVar[bool] = FTM.needs_statistics
    needs_subject: ClassVar[bool] = FTM.needs_subject
    default_host: ClassVar[type[Editor]] = FTM
    scales_columns: ClassVar[bool] = True

    def __init__(
        self, editor: Editor | None = None, alpha: float | Literal["auto"] = "auto"
    ) -> None:
        super().__init__(editor)
        if alpha != "auto" and not 0 <= alpha <= 1:
            raise ValueError(
                f"alpha is auto or lies between 0 (original) and 1 (edited), got {alpha}"
            )
        self.alpha: float | Literal["auto"] = alpha
        self._now = 1.0

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the host's update of a batch, and scale it.

        Args:
            batch: Requests and their token ids.

        Returns:
            The scaled update.
        """
        return self._scaled_delta(self.editor.edit(batch), batch.encoded)

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute one scaled delta per request, with the host's own batched search.

        Args:
            batch: Requests and their token ids.
        """
        whole = self.editor.edit_independent(batch)
        return [
            self._scaled_delta(delta, [one])
            for delta, one in zip(whole, batch.encoded, strict=True)
        ]

    def _scaled_delta(self, delta: Delta, encoded: Sequence[Encoded]) -> Delta:
        self._now = self._weight_for(delta, encoded) if self.alpha == "auto" else self.alpha
        shaped = self._shape_delta(delta)
        if self.alpha != "auto":
            return shaped
        self.chose({"alpha": self._now})
        auto = {**shaped.info.get("auto", {}), "alpha": self._now}
        return replace(shaped, info={**shaped.info, "auto": auto})

    def _weight_for(self, delta: Delta, encoded: Sequence[Encoded]) -> float:
        """Return the smallest α that writes every answer that the whole update writes.

        It is 1 where that writes none.
        """
        whole = answers_with(self, delta, encoded).right
        if not bool(whole.any()):
            return 1.0
        for alpha in ALPHAS:
            part = {name: scaled(update, alpha) for name, update in delta.weights.items()}
            right = answers_with(self, replace(delta, weights=part), encoded).right
            if bool((right | ~whole).all()):
                return alpha
        return 1.0

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Scale the update by α; a low-rank update stays low-rank.

        Args:
            name: The parameter.
            update: The host's update of it.
        """
        return scaled(update, self._now)


def scaled(update: WeightUpdate, alpha: float) -> WeightUpdate:
    """Scale an update by α; a low-rank update stays low-rank.

    Args:
        update: The update of one weight.
        alpha: α, the interpolation weight.
    """
    if isinstance(update, LowRank):
        return LowRank(update.left * alpha, update.right)
    return Dense(update.value * alpha)
