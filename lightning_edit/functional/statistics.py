"""Second moments of a layer's inputs.

Axis names: ``k`` -- tokens; ``f`` -- width of a key.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class SecondMoment(Metric):
    """Uncentred second moment E[k kᵀ] of keys, accumulated in float64.

    The states are sums, so processes that saw different texts add theirs.

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
        """Add keys, one a row."""
        keys = keys.double()
        self.total += keys.mT @ keys
        self.count += len(keys)

    def compute(self) -> Float[Tensor, "f f"]:
        """Return the mean of k kᵀ.

        Raises:
            ValueError: If no key was seen.
        """
        if not int(self.count):
            raise ValueError("no token was seen; give the statistics some text")
        return self.total / self.count
