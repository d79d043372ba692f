"""1-LI: Brown et al., Edit at Your Own Risk, 2023, arXiv 2303.00046."""

from typing import ClassVar

from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.ft import FT
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.edits.delta import Dense, LowRank, WeightUpdate


class OneLI(UpdateShaper):
    r"""Linear interpolation between the original and the edited weights of a layer.

    :math:`W_\alpha = (1 - \alpha) W_0 + \alpha W_\text{edited}`. From α = 0 to 1 edit success rises
    while the model's robustness falls; choose α on facts outside the test set.

    Args:
        editor: The host; ``None``: fine-tuning of one layer, as in the paper.
        alpha: α. In sequential editing it scales each edit's own update.

    Note:
        Reconstructed: the paper's abstract defines the interpolation, and no code was published.
        The paper edits image models; for any host whose update is linear in its residual, such as
        MEMIT, α scales the residual that is written.
    """

    needs_statistics: ClassVar[bool] = FT.needs_statistics
    needs_subject: ClassVar[bool] = FT.needs_subject
    default_host: ClassVar[type[Editor]] = FT
    scales_columns: ClassVar[bool] = True

    def __init__(self, editor: Editor | None = None, alpha: float = 0.5) -> None:
        super().__init__(editor)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies between 0 (original) and 1 (edited), got {alpha}")
        self.alpha = alpha

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Scale the update by α; a low-rank update stays low-rank.

        Args:
            name: The parameter.
            update: The host's update of it.
        """
        return scaled(update, self.alpha)


def scaled(update: WeightUpdate, alpha: float) -> WeightUpdate:
    """Scale an update by α; a low-rank update stays low-rank.

    Args:
        update: The update of one weight.
        alpha: α, the interpolation weight.
    """
    if isinstance(update, LowRank):
        return LowRank(update.left * alpha, update.right)
    return Dense(update.value * alpha)
