"""Hypernetwork arithmetic: learned transforms of gradients (MEND; shared with MALMEN and KE).

Axis names: ``n`` -- tokens, of all edits of a batch; ``a`` -- answer tokens; ``v`` -- vocabulary;
``d_in``/``d_out`` -- an edited weight acts as ``y = W u``; ``d`` -- ``d_in + d_out`` or either of
them; ``r`` -- rank of a layer of the editor network.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

#: Added to standard deviations before dividing: `eric-mitchell/mend`, `algs/mend.py`.
STD_EPSILON = 1e-7


def informative_rows(
    inputs: Float[Tensor, "*n d_in"], gradients: Float[Tensor, "*n d_out"]
) -> Bool[Tensor, "*n"]:
    """Mask tokens that contribute to the gradient: neither of their factors is all zero.

    Padding, and positions that the loss does not depend on, drop out here. Earlier prompt tokens
    stay wherever attention carries gradient to them.

    Args:
        inputs: Inputs of the edited layer.
        gradients: Gradient of the loss at the layer's output.
    """
    return (inputs != 0).any(-1) & (gradients != 0).any(-1)


def merge_moments(
    count: Int[Tensor, ""],
    mean: Float[Tensor, " d"],
    squares: Float[Tensor, " d"],
    rows: Float[Tensor, "n d"],
) -> tuple[Int[Tensor, ""], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Merge new rows into a running mean and sum of squared deviations (variance).

    Chan, Golub and LeVeque's merge of two samples: the same result as Welford's update row by row,
    in one step.

    Args:
        count: Rows seen so far.
        mean: Their mean.
        squares: Sum of their squared deviations from the mean.
        rows: At least one new row.

    Returns:
        The updated count, mean and squares.

    Example:
        >>> start = torch.tensor(0), torch.zeros(1), torch.zeros(1)
        >>> one = merge_moments(*start, torch.tensor([[1.0]]))
        >>> merge_moments(*one, torch.tensor([[3.0], [5.0]]))
        (tensor(3), tensor([3.]), tensor([8.]))
    """
    new = rows.shape[0]
    total = count + new
    # Divided in the rows' dtype: integers would be divided in single precision.
    share = new / total.to(rows.dtype)
    rows_mean = rows.mean(0)
    difference = rows_mean - mean
    within = (rows - rows_mean).square().sum(0)
    between = difference.square() * (count.to(rows.dtype) * share)
    return total, mean + difference * share, squares + within + between


def residual_block(
    rows: Float[Tensor, "n d"],
    down: Float[Tensor, "r d"],
    up: Float[Tensor, "d r"],
    bias: Float[Tensor, " d"],
    scale: Float[Tensor, " d"],
    shift: Float[Tensor, " d"],
) -> Float[Tensor, "n d"]:
    r"""Apply one residual block of MEND's hypernetwork (editor network).

    :math:`z + \max(0,\; s_\ell \odot (U V z + b) + o_\ell)` (MEND, arXiv 2110.11309, equation 4).

    Args:
        rows: Normalised tokens :math:`z`.
        down: :math:`V`.
        up: :math:`U`; zero at the start, which makes the block the identity.
        bias: :math:`b`.
        scale: :math:`s_\ell`, one per edited layer.
        shift: :math:`o_\ell`, one per edited layer.

    Note:
        ``clamp`` and not ``relu``: at zero its gradient is 1, and without that a zero :math:`U`
        would never learn. As in the authors' code every block has it; the paper leaves it out of
        the last.
    """
    change = scale * (rows @ down.mT @ up.mT + bias) + shift
    return rows + change.clamp(min=0)


def drift_kl(before: Float[Tensor, "a v"], after: Float[Tensor, "a v"]) -> Float[Tensor, ""]:
    r"""Mean :math:`\mathrm{KL}(p_\text{before} \,\|\, p_\text{after})` over answer tokens, in nats.

    Args:
        before: Logits of the unedited model.
        after: Logits of the edited model at the same positions.
    """
    old, new = (
        logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        for logits in (before, after)
    )
    return nn.functional.kl_div(new, old, log_target=True, reduction="sum") / before.shape[0]


class RunningNorm(nn.Module):
    """Running standardisation of the two factors of a gradient, collected in training.

    Everything that later updates depend on is a buffer, the number of rows included, so a run that
    resumes from a checkpoint continues with the same statistics.

    Args:
        d_in: Width of layer inputs.
        d_out: Width of output gradients.

    Note:
        The authors' code marks the first row with a Python flag that checkpoints do not hold; there
        statistics start again after loading. Here the count in the buffer is that flag.
    """

    count: Tensor
    input_mean: Tensor
    input_squares: Tensor
    gradient_mean: Tensor
    gradient_squares: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name, width in (("input", d_in), ("gradient", d_out)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_squares", torch.zeros(width))

    def update(self, inputs: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"]) -> None:
        """Update the running statistics with rows of both factors."""
        if not inputs.shape[0]:
            return
        for name, rows in (("input", inputs), ("gradient", gradients)):
            mean, squares = getattr(self, f"{name}_mean"), getattr(self, f"{name}_squares")
            total, new_mean, new_squares = merge_moments(self.count, mean, squares, rows)
            mean.copy_(new_mean)
            squares.copy_(new_squares)
        self.count.copy_(total)

    def forward(
        self, inputs: Float[Tensor, "n d_in"], gradients: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, "n d"]:
        """Standardise both gradient factors and concatenate them.

        With fewer than two rows seen there is no standard deviation, and the rows stay unchanged.
        """
        if int(self.count) < 2:
            return torch.cat((inputs, gradients), -1)
        parts = []
        for name, rows in (("input", inputs), ("gradient", gradients)):
            std = (getattr(self, f"{name}_squares") / (self.count - 1)).sqrt()
            parts.append((rows - getattr(self, f"{name}_mean")) / (std + STD_EPSILON))
        return torch.cat(parts, -1)


class GradientTransform(nn.Module):
    """MEND's hypernetwork (editor network) for all edited weights of one shape.

    Args:
        d_in: Width of layer inputs.
        d_out: Width of output gradients.
        num_layers: Edited weights of this shape; each has its own scale and shift.
        rank: Rank of the blocks' matrices.
        num_blocks: Blocks; the authors' ``n_hidden + 1``.
    """

    def __init__(
        self, d_in: int, d_out: int, num_layers: int, rank: int, num_blocks: int = 2
    ) -> None:
        super().__init__()
        width = d_in + d_out
        self.d_in, self.d_out = d_in, d_out
        self.norm = RunningNorm(d_in, d_out)
        self.down = nn.Parameter(torch.randn(num_blocks, rank, width))
        self.up = nn.Parameter(torch.zeros(num_blocks, width, rank))
        self.bias = nn.Parameter(torch.zeros(num_blocks, width))
        self.scale = nn.Parameter(torch.ones(num_blocks, num_layers, width))
        self.shift = nn.Parameter(torch.zeros(num_blocks, num_layers, width))

    def forward(
        self,
        inputs: Float[Tensor, "n d_in"],
        gradients: Float[Tensor, "n d_out"],
        layer: int,
        update_norm: bool = False,
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Transform gradient factors of one edited weight into those of its pseudo-gradient.

        Args:
            inputs: Inputs of the layer; :func:`informative_rows` only.
            gradients: Gradients at its output.
            layer: Number of the weight among those of its shape.
            update_norm: Update the normaliser's statistics with the tokens first, as in training.
                It is an explicit argument because a new module is already in training mode.

        Returns:
            Transformed factors of every token.
        """
        inputs, gradients = inputs.float(), gradients.float()
        if update_norm:
            self.norm.update(inputs, gradients)
        rows: Any = self.norm(inputs, gradients)
        for block in range(self.up.shape[0]):
            rows = residual_block(
                rows,
                self.down[block],
                self.up[block],
                self.bias[block],
                self.scale[block, layer],
                self.shift[block, layer],
            )
        left, right = rows.split((self.d_in, self.d_out), -1)
        return left, right
