"""Master copies of weights in float32: what fine-tuning trains in place of the model itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.edits.delta import Dense
from lightning_edit.models.weights import Weight


class MasterCopies:
    """Trainable copies of some weights of a model, at least in float32.

    Args:
        handles: The weights.

    Attributes:
        limit: Largest change of every single weight (a projection to an L∞ ball); ``None``: none.
    """

    def __init__(self, handles: Sequence[Weight]) -> None:
        self.handles = handles
        self.limit: float | None = None
        dtype = torch.promote_types(handles[0].dtype, torch.float32)
        self.start = [handle.raw().detach().to(dtype) for handle in handles]
        self.master = [value.clone().requires_grad_() for value in self.start]

    def values(self) -> dict[str, Tensor]:
        """Return the values that the model computes with, in its own dtype, by parameter name."""
        # The gradient passes through the cast.
        pairs = zip(self.handles, self.master, strict=True)
        return {handle.name: value.to(handle.dtype) for handle, value in pairs}

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the change of every single weight to the limit, if there is one."""
        limit = self.limit
        if limit is None:
            return
        for value, before in zip(self.master, self.start, strict=True):
            value.copy_(torch.clamp(value, min=before - limit, max=before + limit))

    def updates(self) -> dict[str, Dense]:
        """Return the update of each weight, trained minus original, (d_out, d_in) in float32."""
        return {
            handle.name: Dense(_in_update_layout(handle, after.detach() - before))
            for handle, after, before in zip(self.handles, self.master, self.start, strict=True)
        }


def _in_update_layout(handle: Weight, value: Tensor) -> Tensor:
    """Transpose an update of the stored parameter to (d_out, d_in) if needed, in float32."""
    return (value.mT if handle.transposed else value).float().contiguous()
