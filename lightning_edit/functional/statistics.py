"""Second moments (uncentred covariance) of keys, a layer's inputs, summed over processes.

Axis names: ``k`` -- tokens; ``f`` -- width of a key.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

#: Strips of rows in which the upper triangle is summed: 8 need 9/16 of the products of the whole.
_STRIPS = 8


class SecondMoment(Metric):
    """Uncentred second moment E[k kᵀ] of keys, accumulated in float64.

    The states are sums, so processes (ranks) that saw different texts add theirs.

    Args:
        width: Entries of a key.

    Example:
        >>> moment = SecondMoment(2)
        >>> moment.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> moment.compute()
        tensor([[1., 1.],
                [1., 2.]], dtype=torch.float64)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(width, width, dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, keys: Float[Tensor, "k f"]) -> None:
        """Add a batch of keys, one per row."""
        keys = keys.double()
        width = keys.shape[1]
        height = -(-width // _STRIPS)
        # The matrix is symmetric, so below the strips nothing is computed until the end.
        for top in range(0, width, height):
            strip = keys[:, top : top + height]
            self.total[top : top + height, top:] += strip.mT @ keys[:, top:]
        self.count += len(keys)

    def compute(self) -> Float[Tensor, "f f"]:
        """Return the second moment, the mean of k kᵀ.

        Raises:
            ValueError: If no key was seen.
        """
        if not int(self.count):
            raise ValueError("no token was seen; give the statistics some text")
        upper = self.total.triu()
        return (upper + upper.triu(1).mT) / self.count


class FourthMoments(Metric):
    """Fourth moments E‖k‖⁴ and E Σᵢ kᵢ⁴ of keys: the error of a second moment of few keys.

    Example:
        >>> fourth = FourthMoments()
        >>> fourth.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> fourth.compute()
        tensor([2.5000, 1.5000], dtype=torch.float64)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(2, dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, keys: Float[Tensor, "k f"]) -> None:
        """Add a batch of keys, one per row."""
        squares = keys.double().square()
        self.total += torch.stack([squares.sum(1).square().sum(), squares.square().sum()])
        self.count += len(keys)

    def compute(self) -> Float[Tensor, "2"]:
        """Return both fourth moments.

        Raises:
            ValueError: If no key was seen.
        """
        if not int(self.count):
            raise ValueError("no token was seen; give the statistics some text")
        return self.total / self.count
