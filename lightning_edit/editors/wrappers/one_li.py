"""1-LI: Brown et al., Edit at Your Own Risk, 2023, arXiv 2303.00046."""

from typing import ClassVar

from lightning_edit.editors.base import Editor
from lightning_edit.editors.gradient.ft import FT
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.edits.delta import Dense, LowRank, WeightUpdate


class OneLI(UpdateShaper):
    r"""Go only part of the way from the original to the edited layer.

    :math:`W_\alpha = (1 - \alpha) W_0 + \alpha W_\text{edited}`. With α rising from 0 to 1 an edit
    takes hold while the model's robustness falls; choose α on facts that are not the test set.

    Args:
        editor: The host; ``None``: fine-tuning of one layer, as in the paper.
        alpha: α. In a sequence it scales each edit's own increment.

    Note:
        Reconstructed: the paper's abstract defines the interpolation, and no code was published.
        The paper edits image models; for any host whose update is linear in its residual, such as
        MEMIT, α scales the residual that is written.
    """

    needs_statistics: ClassVar[bool] = FT.needs_statistics
    needs_subject: ClassVar[bool] = FT.needs_subject
    default_host: ClassVar[type[Editor]] = FT

    def __init__(self, editor: Editor | None = None, alpha: float = 0.5) -> None:
        super().__init__(editor)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies between 0 (original) and 1 (edited), got {alpha}")
        self.alpha = alpha

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Return the update times α, as factors where the host gave factors.

        Args:
            name: The parameter.
            update: The host's update of it.
        """
        return scaled(update, self.alpha)


def scaled(update: WeightUpdate, alpha: float) -> WeightUpdate:
    """Return an update times α, as factors where it has factors.

    Args:
        update: The update of one weight.
        alpha: α, the part of the way that is gone.
    """
    if isinstance(update, LowRank):
        return LowRank(update.left * alpha, update.right)
    return Dense(update.value * alpha)
