"""Adam (Kingma and Ba, 2015) for one small tensor, without an optimiser's bookkeeping."""

from torch import Tensor


class AdamVector:
    """Adam of one tensor; steps equal those of ``torch.optim.Adam`` within rounding.

    For a vector of a few thousand numbers an optimiser's own bookkeeping costs more than its sums.

    Args:
        value: The tensor, changed in place.
        lr: Learning rate, or one for each number.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.

    Example:
        >>> import torch
        >>> value = torch.zeros(2)
        >>> AdamVector(value, 0.5).step(torch.tensor([3.0, -1.0]))
        >>> value
        tensor([-0.5000,  0.5000])
    """

    def __init__(
        self,
        value: Tensor,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.value = value.detach()  # shares the memory
        self.lr, self.betas, self.eps = lr, betas, eps
        self.first = self.value.new_zeros(self.value.shape)
        self.second = self.value.new_zeros(self.value.shape)
        self.count = 0

    def step(self, gradient: Tensor) -> None:
        """Make one step.

        Args:
            gradient: Gradient at the present value.
        """
        one, two = self.betas
        self.count += 1
        self.first.lerp_(gradient, 1 - one)
        self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        scale = (1 - two**self.count) ** 0.5
        root = self.second.sqrt().div_(scale).add_(self.eps)
        corrected = 1 - one**self.count
        if isinstance(self.lr, Tensor):
            self.value.sub_(self.lr * self.first / root / corrected)
        else:
            self.value.addcdiv_(self.first, root, value=-self.lr / corrected)
