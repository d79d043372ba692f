"""Selection of the most active neurons (entries of a key).

Axis names: ``f`` -- width of a key; ``n`` -- keys; ``s`` -- entries chosen.
"""

from jaxtyping import Float, Int
from torch import Tensor


def most_active(keys: Float[Tensor, "f n"], share: float) -> Int[Tensor, " s"]:
    """Return the neurons that together carry a share of the keys' activity (NSE, 2410.04045).

    The activity of a neuron (an entry of a key) is the sum of its absolute values over all keys.
    Neurons are taken in descending order of activity as long as their sum does not exceed the
    share; at least one is.

    Args:
        keys: One column per key.
        share: From 0 to 1.

    Returns:
        Their indices, in rising order.

    Example:
        >>> import torch
        >>> most_active(torch.tensor([[1.0], [-6.0], [3.0]]), 0.9)
        tensor([1, 2])
    """
    activity, order = keys.abs().sum(1).sort(descending=True)
    # The last cumulative sum may round to slightly more than the total.
    limit = share * activity.sum() * (1 + 1e-12)
    count = max(1, int((activity.cumsum(0) <= limit).sum()))
    chosen: Tensor = order[:count].sort().values
    return chosen
