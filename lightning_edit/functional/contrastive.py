"""Contrastive knowledge assessment (CKA) of CaliNET: true relation against wrong relations.

Axis names: ``f`` -- facts; ``w`` -- prompts with a wrong relation.
"""

from jaxtyping import Float
from torch import Tensor


def contrastive_score(
    true: Float[Tensor, " f"], wrong: Float[Tensor, "f w"], smoothing: float = 0.0
) -> Float[Tensor, " f"]:
    """Return CKA = (P(o | true relation) + ε) / (mean P(o | wrong relations) + ε).

    Below one the object is at least as probable after a wrong relation: the model does not know
    the fact (Dong et al., arXiv 2210.03329).

    Args:
        true: Probability of the object after the prompt with the true relation.
        wrong: Probabilities after prompts of the same subject with wrong relations.
        smoothing: ε: 0 in the paper, 1e-3 in the authors' score table.

    Example:
        >>> import torch
        >>> contrastive_score(torch.tensor([0.4]), torch.tensor([[0.1, 0.3]]))
        tensor([2.])
    """
    return (true + smoothing) / (wrong.mean(-1) + smoothing)
