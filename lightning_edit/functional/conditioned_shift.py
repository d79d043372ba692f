"""KE's arithmetic: a text condition gates a gradient by a rank-one mask and adds a rank-one term.

Axis names: ``b`` -- texts; ``t`` -- tokens of a text; ``c`` -- condition vector; ``m``/``n`` --
rows and columns of an edited weight (d_out and d_in); ``k`` -- answer tokens that carry gradient;
``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Shift(NamedTuple):
    """What a head says of one weight matrix, for one text.

    Args:
        mask_column: Factor of each column of the gradient.
        mask_row: Share of each row of the gradient, as logits.
        add_column: Column factors of the added term.
        add_row: Row shares of the added term, as logits.
        gate: Logit of the gate.
    """

    mask_column: Float[Tensor, "b n"]
    mask_row: Float[Tensor, "b m"]
    add_column: Float[Tensor, "b n"]
    add_row: Float[Tensor, "b m"]
    gate: Float[Tensor, "b 1"]


def low_rank_shift(
    shift: Shift,
    outputs: Float[Tensor, "k m"],
    inputs: Float[Tensor, "k n"],
    max_scale: float,
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]:
    r"""Return one text's update of a weight as factors of rank k + 1.

    :math:`\Delta W = s\,\sigma(g)\,(\nabla W \odot \mathrm{softmax}(a_r) a_c^\top +
    \mathrm{softmax}(b_r) b_c^\top)` (KE, arXiv 2104.08164, section 3.2). A mask of rank one scales
    rows and columns, so the gradient :math:`\nabla W = \sum_k \delta_k u_k^\top` keeps its factors.

    Args:
        shift: What the head says, of one text.
        outputs: Gradients at the layer's output.
        inputs: The layer's inputs.
        max_scale: :math:`s`.
    """
    scale = max_scale * shift.gate.sigmoid()
    left = torch.cat((shift.mask_row.softmax(-1) * outputs, shift.add_row.softmax(-1)))
    right = torch.cat((shift.mask_column * inputs, shift.add_column))
    return (scale * left).mT, right


class WeightNormLinear(nn.Module):
    r"""Linear layer with normalised rows: :math:`W = g\, v / \|v\|`.

    Args:
        d_in: Width of the input.
        d_out: Width of the output.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        start = nn.Linear(d_in, d_out)
        self.weight_v = nn.Parameter(start.weight.detach().clone())
        self.weight_g = nn.Parameter(start.weight.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(start.bias.detach().clone())

    def forward(self, rows: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """Apply the layer."""
        weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return nn.functional.linear(rows, weight, self.bias)


class TextCondition(nn.Module):
    """Bidirectional LSTM over token embeddings; its two last states become one condition vector.

    Args:
        embeddings: Initial token embeddings, which are copied and trained.
        hidden: Width of the LSTM in each direction.
        condition: Width of the condition vector.
    """

    def __init__(self, embeddings: Float[Tensor, "v d"], hidden: int, condition: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embeddings.detach().clone().float())
        self.lstm = nn.LSTM(embeddings.shape[1], hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, condition)

    def state(self, ids: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b h"]:
        """Return the last forward and backward states behind each text's own tokens.

        Args:
            ids: Token ids, padded on the right with any token.
            lengths: Tokens of each text.
        """
        embedded = nn.functional.embedding(ids, self.embedding)
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        return torch.cat((last[0], last[1]), -1)

    def forward(self, ids: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """Return the condition vector of each text; see :meth:`state`."""
        condition: Tensor = self.linear(self.state(ids, lengths)).tanh()
        return condition


class ShiftHead(nn.Module):
    """Head of one edited weight: condition vector in, mask, added term and gate out.

    Args:
        condition: Width of the condition vector.
        hidden: Width between the two layers.
        d_out: Rows of the weight.
        d_in: Its columns.
    """

    def __init__(self, condition: int, hidden: int, d_out: int, d_in: int) -> None:
        super().__init__()
        self.sizes = (d_in, d_out, d_in, d_out, 1)
        self.first = WeightNormLinear(condition, hidden)
        self.last = WeightNormLinear(hidden, sum(self.sizes))

    def forward(self, condition: Float[Tensor, "b c"]) -> Shift:
        """Return the parts of the update for each text."""
        return Shift(*self.last(self.first(condition).tanh()).split(self.sizes, -1))


def label_smoothed_nll(
    logits: Float[Tensor, "a v"], targets: Int[Tensor, " a"], smoothing: float
) -> Float[Tensor, ""]:
    r"""Mean label-smoothed negative log-likelihood over answer tokens, in nats.

    :math:`(1 - \epsilon - \epsilon_v)\,\mathrm{NLL} - \epsilon_v \sum_w \log p_w` with
    :math:`\epsilon_v = \epsilon / (V - 1)`: the sum is over all tokens, the target among them, as
    in the authors' code.

    Args:
        logits: Logits that should predict the targets.
        targets: Tokens.
        smoothing: :math:`\epsilon`; 0: the plain negative log-likelihood.
    """
    scores = logits.log_softmax(-1)
    each = smoothing / (logits.shape[-1] - 1)
    nll = -scores.gather(-1, targets[:, None]).squeeze(-1)
    return ((1 - smoothing - each) * nll - each * scores.sum(-1)).mean()


def root_mean_square(left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> Float[Tensor, ""]:
    """Return the root mean square over the entries of ``left @ right``, without the product.

    Args:
        left: Left factor.
        right: Right factor.

    Example:
        >>> float(root_mean_square(torch.ones(4, 1), 3 * torch.ones(1, 5)))
        3.0
    """
    squared = ((left.mT @ left) * (right @ right.mT)).sum()
    return (
        squared.clamp_min(torch.finfo(left.dtype).tiny) / (left.shape[0] * right.shape[1])
    ).sqrt()


def linear_warmup_decay(step: int, warmup: int, total: int | None) -> float:
    """Return the factor of a learning rate: linear warm-up from 0, then linear decay to 0.

    Args:
        step: Optimiser steps so far.
        warmup: Steps of the warm-up.
        total: Step at which the factor is 0 again; ``None``: no decay.

    Example:
        >>> [linear_warmup_decay(step, 2, 6) for step in (0, 1, 2, 4, 6, 7)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if step < warmup:
        return step / warmup
    if total is None:
        return 1.0
    return max(0.0, (total - step) / max(1, total - warmup))
