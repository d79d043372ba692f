"""TopHash of MEMOIR: which inputs of a layer a prompt may write to and read from.

Axis names: ``r`` -- prompts; ``f`` -- inputs of the layer; ``k`` -- inputs that a mask selects;
``m`` -- stored masks.
"""

from jaxtyping import Float, Int
from torch import Tensor


def top_hash(
    features: Float[Tensor, "r f"], permutation: Int[Tensor, " f"], count: int
) -> Int[Tensor, "r k"]:
    """Return the mask of each prompt: images of its largest features under a fixed permutation.

    The largest features of prompts lie in few places; the permutation spreads what is written.

    Args:
        features: Mean input over a prompt's tokens, without the mean of unrelated text.
        permutation: A permutation of the inputs.
        count: Number of inputs that a mask selects, k.

    Returns:
        The selected inputs, in rising order.

    Example:
        >>> import torch
        >>> top_hash(torch.tensor([[0.1, -3.0, 2.0, 0.0]]), torch.tensor([2, 0, 3, 1]), 2)
        tensor([[0, 3]])
    """
    largest = features.abs().topk(count, dim=1).indices
    return permutation[largest].sort(dim=1).values


def overlaps(
    masks: Int[Tensor, "r k"], stored: Int[Tensor, "m k"], width: int
) -> Float[Tensor, "r m"]:
    """Return the share of its inputs that each mask has in common with each stored one.

    Args:
        masks: Selected inputs.
        stored: Selected inputs of stored masks.
        width: Number of inputs, f.

    Example:
        >>> import torch
        >>> overlaps(torch.tensor([[0, 3]]), torch.tensor([[0, 1], [0, 3]]), 4)
        tensor([[0.5000, 1.0000]])
    """
    known = _indicator(stored, width)
    return _indicator(masks, width) @ known.mT / masks.shape[1]


def _indicator(masks: Tensor, width: int) -> Tensor:
    ones = masks.new_ones(masks.shape).float()
    return ones.new_zeros(len(masks), width).scatter_(1, masks, ones)
