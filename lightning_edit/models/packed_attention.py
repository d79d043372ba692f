"""Attention over texts of unequal length that stand in one row, with its gradient.

A text brings few queries and few keys, where a product of small matrices is faster than a fused
kernel, and what stays the same needs no gradient: the keys and values of earlier tokens.

Axis names: ``k`` -- texts of a part; ``m`` -- tokens of a row; ``t`` -- most tokens of a text;
``p`` -- most tokens of a text in the cache; ``h`` -- heads of the queries; ``g`` -- how many of
them share a head ``j`` of the keys; ``c``, ``e`` -- width of a head's key and value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Texts that go through attention together.

    Make it with :meth:`of`.

    Args:
        numbers: The texts.
        lengths: Tokens of each in the row, where they follow each other.
        before: Which places of ``past`` are tokens of the text.
        past: Keys and values of the tokens before, (j, k, p, c) and (j, k, p, e), by number of the
            block.
        slots: Place in the part of every token of the texts, padded right by the text's last one.
        places: Place among the padded texts of every token of the part.
        mask: What is added to the attention scores.
    """

    numbers: Int[Tensor, " k"]
    lengths: Int[Tensor, " k"]
    before: Bool[Tensor, "k p"]
    past: Mapping[int, tuple[Tensor, Tensor]]
    slots: Int[Tensor, " slots"]
    places: Int[Tensor, " m"]
    mask: Float[Tensor, "k t keys"]

    @classmethod
    def of(
        cls,
        numbers: Int[Tensor, " k"],
        lengths: Int[Tensor, " k"],
        before: Bool[Tensor, "k p"],
        past: Mapping[int, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> "Part":
        """Lay texts out; arguments as of the class, ``dtype`` is that of the hidden states."""
        longest = int(lengths.max())
        steps = torch.arange(longest, device=lengths.device)
        starts = lengths.cumsum(0) - lengths
        slots = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        causal = (steps <= steps[:, None]).expand(len(lengths), -1, -1)
        seen = torch.cat([before[:, None].expand(-1, longest, -1), causal], dim=2)
        mask = torch.zeros(seen.shape, dtype=dtype, device=lengths.device)
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        places = (steps < lengths[:, None]).flatten().nonzero().squeeze(1)
        return cls(numbers, lengths, before, past, slots.flatten(), places, mask)

    def select(self, numbers: Int[Tensor, " n"], rows: Int[Tensor, " n"]) -> "Part":
        """Return some of the texts, some maybe several times, under new numbers."""
        past = {
            block: (keys[:, rows], values[:, rows]) for block, (keys, values) in self.past.items()
        }
        return Part.of(numbers, self.lengths[rows], self.before[rows], past, self.mask.dtype)

    @property
    def longest(self) -> int:
        """Most tokens t of a text in the row."""
        return self.mask.shape[1]

    @property
    def even(self) -> bool:
        """Whether all texts have as many tokens, so that there is no padding."""
        return len(self.slots) == len(self.places)

    def apart(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Give every text a row of its own; what is padding repeats its last token."""
        whole = row if self.even else row.index_select(1, self.slots)
        return torch.unflatten(whole, 1, self.mask.shape[:2]).contiguous()

    def together(self, apart: Float[Tensor, "h k t c"]) -> Float[Tensor, "h m c"]:
        """Put the tokens of the texts into one row."""
        row = apart.flatten(1, 2)
        return row if self.even else row.index_select(1, self.places)

    def padded(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Give every text a row of its own; padding is zero."""
        if self.even:
            return self.apart(row)
        whole = row.new_zeros(len(row), len(self.slots), row.shape[2])
        whole.index_copy_(1, self.places, row)
        return torch.unflatten(whole, 1, self.mask.shape[:2])


def attend(
    parts: Sequence[Part],
    block: int,
    query: Float[Tensor, "1 h m c"],
    key: Float[Tensor, "1 j m c"],
    value: Float[Tensor, "1 j m e"],
    scaling: float | None,
) -> Float[Tensor, "1 m h e"]:
    """Return softmax(scaling · q kᵀ) v of every text, over its own tokens and those before.

    Args:
        parts: The texts of the row.
        block: Number of the block, for the tokens before.
        query: Queries of all tokens.
        key: Keys, maybe of fewer heads.
        value: Values of the same heads.
        scaling: ``None``: one over the root of a head's width.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Attend.apply(query[0], key[0], value[0], parts, block, factor)  # type: ignore[no-untyped-call]  # torch's is untyped
    return output.transpose(0, 1)[None]


class _Attend(torch.autograd.Function):
    """The tokens before get no gradient, and neither does padding."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "h m c"],
        key: Float[Tensor, "j m c"],
        value: Float[Tensor, "j m e"],
        parts: Sequence[Part],
        block: int,
        scaling: float,
    ) -> Float[Tensor, "h m e"]:
        ctx.parts, ctx.scaling, ctx.block = parts, scaling, block
        kept, rows = [], []
        for part, *cut in zip(
            parts, *(_cut(row, parts) for row in (query, key, value)), strict=True
        ):
            # The heads that share keys stand beside them: (j, g, k, t, c).
            queries = (part.apart(cut[0]) * scaling).unflatten(0, (len(key), -1))
            keys, values = (part.apart(row)[:, None] for row in cut[1:])
            scores = queries @ keys.mT
            old = part.past.get(block)
            if old is not None:
                scores = torch.cat([queries @ old[0][:, None].mT, scores], dim=-1)
            scores += part.mask
            wide = torch.promote_types(scores.dtype, torch.float32)
            weights = scores.softmax(-1, dtype=wide).to(scores.dtype)
            output = weights[..., -part.longest :] @ values
            if old is not None:
                output += weights[..., : -part.longest] @ old[1][:, None]
            rows.append(part.together(output.flatten(0, 1)))
            kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        return torch.cat(rows, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "h m e"]) -> tuple[Tensor | None, ...]:
        saved, found = ctx.saved_tensors, []
        for number, (part, row) in enumerate(
            zip(ctx.parts, _cut(gradient, ctx.parts), strict=True)
        ):
            queries, keys, values, weights = saved[4 * number : 4 * number + 4]
            above = part.padded(row).unflatten(0, queries.shape[:2])
            own = slice(-part.longest, None)
            by_values = (weights[..., own].mT @ above).sum(1)
            by_weights = above @ values.mT
            old = part.past.get(ctx.block)
            if old is not None:
                by_weights = torch.cat([above @ old[1][:, None].mT, by_weights], dim=-1)
            by_scores = torch.ops.aten._softmax_backward_data(
                by_weights, weights, -1, by_weights.dtype
            )
            by_keys = (by_scores[..., own].mT @ queries).sum(1)
            by_queries = by_scores[..., own] @ keys
            if old is not None:
                by_queries += by_scores[..., : -part.longest] @ old[0][:, None]
            by_queries = by_queries.mul_(ctx.scaling).flatten(0, 1)
            found.append([part.together(one) for one in (by_queries, by_keys, by_values)])
        by_query, by_key, by_value = (torch.cat(rows, dim=1) for rows in zip(*found, strict=True))
        return by_query, by_key, by_value, None, None, None


def _cut(row: Float[Tensor, "h m c"], parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """Return the tokens of every part."""
    return torch.split(row, [len(part.places) for part in parts], dim=1)
