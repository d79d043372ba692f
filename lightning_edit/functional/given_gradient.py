"""Value whose gradient is already known, for training steps that compute it themselves."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        scaled = tuple((outputs[0] * gradient).to(gradient.dtype) for gradient in gradients)
        return (None, None, *scaled, *(None for _ in gradients))


def with_gradient(
    value: Float[Tensor, ""], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return a scalar with an autograd graph of given gradients.

    A training step that computes its gradient piece by piece, with bounded memory, hands it to
    autograd so. Whatever acts on losses or gradients then works as usual: accumulation, gradient
    scaling, clipping, DDP's averaging.

    Args:
        value: The loss.
        parameters: What it is differentiated by.
        gradients: Its gradient by each of them.

    Returns:
        The value, with a graph.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> (2 * with_gradient(torch.tensor(5.0), [weight], [torch.tensor([1.0, 3.0])])).backward()
        >>> weight.grad
        tensor([2., 6.])
    """
    known = [gradient.detach() for gradient in gradients]
    found: Tensor = _GivenGradient.apply(  # type: ignore[no-untyped-call]  # torch's is untyped
        value.detach(), len(parameters), *parameters, *known
    )
    return found
