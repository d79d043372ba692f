"""Attention over texts of unequal length that stand in one row, with its gradient.

A text brings few queries and few keys, where a product of small matrices is faster than a fused
kernel, and what stays the same needs no gradient: the keys and values of earlier tokens. They lie
in front of the text's own, which every pass writes anew behind them.

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
class PackedGroup:
    """Texts that go through attention together.

    Make it with :meth:`of`.

    Args:
        numbers: The texts.
        lengths: Tokens of each in the row, where they follow each other.
        before: Which places of ``past`` are tokens of the text.
        past: Keys and values of the tokens before, with room for the text's own behind them,
            (j, k, p + t, c) and (j, k, p + t, e), by number of the block.
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
    ) -> "PackedGroup":
        """Lay texts out.

        Args:
            numbers: As of the class.
            lengths: As of the class.
            before: As of the class.
            past: As of the class, with anything finite where the room is.
            dtype: Type of the hidden states.
        """
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

    def select(self, numbers: Int[Tensor, " n"], rows: Int[Tensor, " n"]) -> "PackedGroup":
        """Return some of the texts, some maybe several times, under new numbers."""
        lengths = self.lengths[rows]
        size = self.before.shape[1] + int(lengths.max())
        past = {
            block: (
                keys.index_select(1, rows)[:, :, :size],
                values.index_select(1, rows)[:, :, :size],
            )
            for block, (keys, values) in self.past.items()
        }
        return PackedGroup.of(numbers, lengths, self.before[rows], past, self.mask.dtype)

    @property
    def size(self) -> int:
        """Tokens m of the texts."""
        return len(self.places)

    @property
    def longest(self) -> int:
        """Most tokens t of a text in the row."""
        return self.mask.shape[1]

    @property
    def even(self) -> bool:
        """Whether all texts have as many tokens, so that there is no padding."""
        return len(self.slots) == len(self.places)

    def apart(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Give every text a line of its own; what is padding repeats its last token."""
        # In memory a token's heads follow each other, as the model made them.
        tokens = row.transpose(0, 1)
        whole = tokens if self.even else tokens.index_select(0, self.slots)
        return torch.unflatten(whole, 0, self.mask.shape[:2]).permute(2, 0, 1, 3)

    def padded(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Give every text a line of its own; padding is zero."""
        if self.even:
            return self.apart(row).contiguous()
        whole = row.new_zeros(len(row), len(self.slots), row.shape[2])
        whole.index_copy_(1, self.places, row)
        return torch.unflatten(whole, 1, self.mask.shape[:2])

    def put(self, apart: Float[Tensor, "h k t c"], row: Float[Tensor, "h m c"]) -> None:
        """Write the tokens of the texts into one row."""
        found = apart.flatten(1, 2)
        row.copy_(found if self.even else found.index_select(1, self.places))

    def keys_and_values(
        self, block: int, key: Float[Tensor, "j m c"], value: Float[Tensor, "j m e"]
    ) -> tuple[Float[Tensor, "j k keys c"], Float[Tensor, "j k keys e"]]:
        """Return those of the tokens before, and of the texts' own behind them.

        They are good until the next call: the room behind ``past`` is written again.
        """
        own = self.apart(key), self.apart(value)
        if block not in self.past:
            return own[0].contiguous(), own[1].contiguous()
        for kept, new in zip(self.past[block], own, strict=True):
            kept[:, :, -self.longest :].copy_(new)
        return self.past[block]


def attend(
    parts: Sequence[PackedGroup],
    block: int,
    query: Float[Tensor, "1 h m c"],
    key: Float[Tensor, "1 j m c"],
    value: Float[Tensor, "1 j m e"],
    scaling: float | None,
) -> Float[Tensor, "1 m h e"]:
    """Return softmax(scaling · q kᵀ) v of every text, over its own tokens and those before.

    Between a call and its gradient there must be no other call with the same block and parts;
    autograd refuses the gradient where there was one.

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
    return output[None]


class _Attend(torch.autograd.Function):
    """The tokens before get no gradient, and neither does padding."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "h m c"],
        key: Float[Tensor, "j m c"],
        value: Float[Tensor, "j m e"],
        parts: Sequence[PackedGroup],
        block: int,
        scaling: float,
    ) -> Float[Tensor, "m h e"]:
        ctx.parts, ctx.scaling = parts, scaling
        kept = []
        found = query.new_empty(query.shape[1], len(query), value.shape[2])
        rows = (query, key, value, found.transpose(0, 1))
        cuts = zip(parts, *(_cut(row, parts) for row in rows), strict=True)
        for part, own_query, own_key, own_value, row in cuts:
            keys, values = part.keys_and_values(block, own_key, own_value)
            apart = part.apart(own_query)
            # Written in the order of the products below, in one go with the factor.
            queries = _shared(torch.mul(apart, scaling, out=apart.new_empty(apart.shape)), len(key))
            scores = queries @ keys.mT
            torch.unflatten(scores, 2, (-1, part.longest)).add_(part.mask[:, None])
            wide = torch.promote_types(scores.dtype, torch.float32)
            weights = scores.softmax(-1, dtype=wide).to(scores.dtype)
            part.put(_apart(weights @ values, part.longest), row)
            kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "m h e"]) -> tuple[Tensor | None, ...]:
        saved, parts = ctx.saved_tensors, ctx.parts
        shared, width = len(saved[0]), saved[0].shape[3]
        # Memory in the order of the tokens, as the model had them.
        found = [
            gradient.new_empty(len(gradient), count, size).transpose(0, 1)
            for count, size in (
                (gradient.shape[1], width),
                (shared, width),
                (shared, gradient.shape[2]),
            )
        ]
        rows = (gradient.transpose(0, 1), *found)
        cuts = zip(parts, *(_cut(row, parts) for row in rows), strict=True)
        for number, (part, row, query, key, value) in enumerate(cuts):
            queries, keys, values, weights = saved[4 * number : 4 * number + 4]
            above = _shared(part.padded(row), shared)
            own = slice(-part.longest, None)
            part.put(weights[..., own].mT @ above, value)
            by_scores = torch.ops.aten._softmax_backward_data(
                above @ values.mT, weights, -1, weights.dtype
            )
            part.put(by_scores[..., own].mT @ queries, key)
            by_queries = (by_scores @ keys).mul_(ctx.scaling)
            part.put(_apart(by_queries, part.longest), query)
        return *found, None, None, None


def _shared(apart: Float[Tensor, "h k t c"], heads: int) -> Float[Tensor, "j k gt c"]:
    """Put the queries that share a head of the keys behind each other."""
    if len(apart) == heads:
        return apart
    return torch.unflatten(apart, 0, (heads, -1)).transpose(1, 2).flatten(2, 3)


def _apart(shared: Float[Tensor, "j k gt c"], longest: int) -> Float[Tensor, "h k t c"]:
    """Undo :func:`_shared`."""
    if shared.shape[2] == longest:
        return shared
    return torch.unflatten(shared, 2, (-1, longest)).transpose(1, 2).flatten(0, 1)


def _cut(row: Float[Tensor, "h m c"], parts: Sequence[PackedGroup]) -> tuple[Tensor, ...]:
    """Return the tokens of every part."""
    return torch.split(row, [part.size for part in parts], dim=1)
