r"""Hypernetwork of MALMEN and RLEdit: wanted output changes of a layer from keys and gradients.

Axis names: ``n`` -- tokens; ``d_in``/``d_out`` -- an edited weight acts as ``y = W k``; ``d`` --
``d_in + d_out``; ``r`` -- rank of a block's matrix.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.functional.hypernet import merge_moments
from lightning_edit.functional.normalise import Variance


class RunningStandardisation(nn.Module):
    r"""Running standardisation of keys concatenated with gradients, as buffers.

    :math:`\hat x = (x - \mu) / (\sigma + \epsilon)` with :math:`\sigma^2 = q / (n - 1 + \epsilon)`
    and q the sum of squared deviations.

    Args:
        width: ``d_in + d_out``.
        variance: ``exact``, or ``as_code``: the authors' update adds :math:`n s^2` of a mini-batch
            with the unbiased :math:`s^2`, which overstates the variance (and is NaN for a
            mini-batch of one token, which adds none here).
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int, variance: Variance = "exact") -> None:
        super().__init__()
        self.variance = variance
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def update(self, rows: Float[Tensor, "n d"]) -> None:
        """Update the statistics with the tokens of a mini-batch."""
        if not rows.shape[0]:
            return
        rows = rows.to(self.mean.dtype)
        count, mean, squares = merge_moments(self.count, self.mean, self.squares, rows)
        if self.variance == "as_code" and rows.shape[0] > 1:
            squares = squares + rows.var(0)
        for name, value in (("count", count), ("mean", mean), ("squares", squares)):
            getattr(self, name).copy_(value)

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Standardise tokens; with fewer than two seen there is no deviation: they stay as is."""
        if int(self.count) < 2:
            return rows
        epsilon = torch.finfo(self.mean.dtype).eps
        deviation = (self.squares / (self.count - 1 + epsilon)).sqrt()
        return (rows - self.mean) / (deviation + epsilon)


def rectified_block(
    rows: Float[Tensor, "n d"],
    down: Float[Tensor, "r d"],
    up: Float[Tensor, "d r"],
    bias: Float[Tensor, " d"],
    scale: Float[Tensor, " d"],
    shift: Float[Tensor, " d"],
) -> Float[Tensor, "n d"]:
    r"""Apply one residual block of MALMEN's network.

    :math:`z + s_\ell \odot \max(0, U V z + b) + o_\ell`; MEND has scale and shift inside the max.

    Args:
        rows: Tokens z.
        down: V; random at the start.
        up: U; zero at the start, which makes the block the identity.
        bias: b; zero at the start.
        scale: :math:`s_\ell`, one per edited layer.
        shift: :math:`o_\ell`, likewise.

    Note:
        ``clamp``, not ``relu``: its gradient is 1 at zero, where every token is at the start. With
        ``relu`` U and b would never learn.
    """
    return rows + scale * (rows @ down.mT @ up.mT + bias).clamp(min=0) + shift


class ValueNetwork(nn.Module):
    r"""MALMEN's hypernetwork for all edited layers of one shape.

    Args:
        d_in: Width of keys.
        d_out: Width of gradients.
        num_layers: Edited layers of this shape; each has a scale, shift, step size and ridge.
        rank: Rank of a block's matrix.
        num_blocks: Blocks.
        step_size: Initial :math:`\eta_\ell`.
        variance: See :class:`RunningStandardisation`.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_layers: int,
        rank: int,
        num_blocks: int = 2,
        step_size: float = 1e-6,
        variance: Variance = "exact",
    ) -> None:
        super().__init__()
        width = d_in + d_out
        self.d_in, self.d_out = d_in, d_out
        self.norm = RunningStandardisation(width, variance)
        self.down = nn.Parameter(torch.randn(num_blocks, rank, width))
        self.up = nn.Parameter(torch.zeros(num_blocks, width, rank))
        self.bias = nn.Parameter(torch.zeros(num_blocks, width))
        self.scale = nn.Parameter(torch.ones(num_blocks, num_layers, width))
        self.shift = nn.Parameter(torch.zeros(num_blocks, num_layers, width))
        self.step_sizes = nn.Parameter(torch.full((num_layers,), step_size))
        self.log_ridges = nn.Parameter(torch.zeros(num_layers))

    def update_norm(
        self, keys: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"]
    ) -> None:
        """Update the running statistics with the tokens of a mini-batch."""
        dtype = self.norm.mean.dtype
        self.norm.update(torch.cat((keys.to(dtype), gradients.to(dtype)), -1))

    def pseudo(
        self, keys: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"], layer: int
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Return the transformed keys and gradients.

        Args:
            keys: Inputs of the layer.
            gradients: Gradients at its output.
            layer: Number of the layer among those of its shape.
        """
        dtype = self.up.dtype
        rows: Any = self.norm(torch.cat((keys.to(dtype), gradients.to(dtype)), -1))
        for block in range(self.up.shape[0]):
            rows = rectified_block(
                rows,
                self.down[block],
                self.up[block],
                self.bias[block],
                self.scale[block, layer],
                self.shift[block, layer],
            )
        left, right = rows.split((self.d_in, self.d_out), -1)
        return left, right

    def forward(
        self, keys: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"], layer: int
    ) -> Float[Tensor, "n d_out"]:
        r"""Return the wanted output changes :math:`d = -\eta_\ell (k \cdot \tilde k) \tilde g`.

        Args:
            keys: Inputs of the layer.
            gradients: Gradients at its output.
            layer: Number of the layer among those of its shape.
        """
        pseudo_keys, pseudo_gradients = self.pseudo(keys, gradients, layer)
        agreement = (keys.to(pseudo_keys.dtype) * pseudo_keys).sum(-1, keepdim=True)
        return -self.step_sizes[layer] * agreement * pseudo_gradients
