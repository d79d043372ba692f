"""Padding-free attention over texts of unequal length packed in one row, with its gradient.

A text has few queries and few keys, so products of small matrices are faster than a fused kernel.
The cached keys and values of earlier tokens need no gradient. They precede the text's own, which
every pass overwrites.

Axis names: ``k`` -- texts of a group; ``m`` -- tokens of a row; ``t`` -- maximum tokens of a text;
``p`` -- maximum cached tokens of a text; ``h`` -- heads of the queries; ``g`` -- query heads per
head ``j`` of the keys (grouped-query attention); ``c``, ``e`` -- width of a head's key and value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PackedGroup:
    """Group of packed texts of similar length that share one attention call.

    Make it with :meth:`of`.

    Args:
        numbers: Indices of the texts.
        lengths: Number of tokens of each in the row, where they are contiguous.
        before: Which cached slots of ``past`` hold tokens of the text.
        past: Cached keys and values of earlier tokens, then slots for the text's own, (j, k, p
            + t, c) and (j, k, p + t, e), by number of the block.
        slots: Group index of every token of the texts, right-padded with the text's last one.
        places: Index among the padded texts of every token of the group.
        mask: Additive mask of the attention scores.
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
        """Build the indices and the causal mask of a group of texts.

        Args:
            numbers: As of the class.
            lengths: As of the class.
            before: As of the class.
            past: As of the class, with any finite values in the slots.
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
        """Select texts of the group, repeats allowed, under new indices."""
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

    @cached_property
    def size(self) -> int:
        """Number of tokens m of the texts."""
        return len(self.places)

    @cached_property
    def longest(self) -> int:
        """Maximum number of tokens t of a text in the row."""
        return self.mask.shape[1]

    @cached_property
    def same_length(self) -> bool:
        """Whether all texts have the same length, so that there is no padding."""
        return len(self.slots) == len(self.places)

    def unpack(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Unpack a row into one line per text; padding repeats the text's last token."""
        # In memory a token's heads are contiguous, as the model laid them out.
        tokens = row.transpose(0, 1)
        whole = tokens if self.same_length else tokens.index_select(0, self.slots)
        return torch.unflatten(whole, 0, self.mask.shape[:2]).permute(2, 0, 1, 3)

    def unpack_zero_padded(self, row: Float[Tensor, "h m c"]) -> Float[Tensor, "h k t c"]:
        """Unpack a row into one line per text; padding is zero."""
        if self.same_length:
            return self.unpack(row).contiguous()
        whole = row.new_zeros(row.shape[0], self.slots.shape[0], row.shape[2])
        whole.index_copy_(1, self.places, row)
        return torch.unflatten(whole, 1, self.mask.shape[:2])

    def pack(self, unpacked: Float[Tensor, "h k t c"], row: Float[Tensor, "h m c"]) -> None:
        """Pack the tokens of the texts into one row."""
        found = unpacked.flatten(1, 2)
        row.copy_(found if self.same_length else found.index_select(1, self.places))

    def keys_and_values(
        self, block: int, key: Float[Tensor, "j m c"], value: Float[Tensor, "j m e"]
    ) -> tuple[Float[Tensor, "j k keys c"], Float[Tensor, "j k keys e"]]:
        """Return cached keys and values, followed by the texts' own.

        They are valid until the next call, which overwrites the slots at the end of ``past``.
        """
        own = self.unpack(key), self.unpack(value)
        if block not in self.past:
            return own[0].contiguous(), own[1].contiguous()
        for kept, new in zip(self.past[block], own, strict=True):
            kept[:, :, -self.longest :].copy_(new)
        return self.past[block]


def attend(
    groups: Sequence[PackedGroup],
    block: int,
    query: Float[Tensor, "1 h m c"],
    key: Float[Tensor, "1 j m c"],
    value: Float[Tensor, "1 j m e"],
    scaling: float | None,
) -> Float[Tensor, "1 m h e"]:
    """Return causal attention softmax(scaling · q kᵀ) v of every text, over cached and own tokens.

    No other call with the same block and groups may come between a call and its backward pass;
    autograd raises an error if one does.

    Args:
        groups: Groups of the row's texts.
        block: Number of the block, to look up cached keys and values.
        query: Queries of all tokens.
        key: Keys, possibly of fewer heads (grouped-query attention).
        value: Values of the same heads.
        scaling: ``None``: one over the root of a head's width.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _PackedAttention.apply(query[0], key[0], value[0], groups, block, factor)  # type: ignore[no-untyped-call]  # torch's is untyped
    return output[None]


class _PackedAttention(torch.autograd.Function):
    """Autograd function of packed attention; cached tokens and padding get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "h m c"],
        key: Float[Tensor, "j m c"],
        value: Float[Tensor, "j m e"],
        groups: Sequence[PackedGroup],
        block: int,
        scaling: float,
    ) -> Float[Tensor, "m h e"]:
        ctx.groups, ctx.scaling = groups, scaling
        kept = []
        found = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        rows = (query, key, value, found.transpose(0, 1))
        cuts = zip(groups, *(_split_groups(row, groups) for row in rows), strict=True)
        for group, own_query, own_key, own_value, row in cuts:
            keys, values = group.keys_and_values(block, own_key, own_value)
            unpacked = group.unpack(own_query)
            # Laid out for the products below, in the same step as the scaling.
            queries = _group_heads(
                torch.mul(unpacked, scaling, out=unpacked.new_empty(unpacked.shape)), key.shape[0]
            )
            scores = queries @ keys.mT
            torch.unflatten(scores, 2, (-1, group.longest)).add_(group.mask[:, None])
            wide = torch.promote_types(scores.dtype, torch.float32)
            weights = scores.softmax(-1, dtype=wide).to(scores.dtype)
            group.pack(_ungroup_heads(weights @ values, group.longest), row)
            kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "m h e"]) -> tuple[Tensor | None, ...]:
        saved, groups = ctx.saved_tensors, ctx.groups
        kv_heads, width = saved[0].shape[0], saved[0].shape[3]
        # Token-major memory, as the model's own tensors have it.
        found = [
            gradient.new_empty(gradient.shape[0], count, size).transpose(0, 1)
            for count, size in (
                (gradient.shape[1], width),
                (kv_heads, width),
                (kv_heads, gradient.shape[2]),
            )
        ]
        rows = (gradient.transpose(0, 1), *found)
        cuts = zip(groups, *(_split_groups(row, groups) for row in rows), strict=True)
        for number, (group, row, query, key, value) in enumerate(cuts):
            queries, keys, values, weights = saved[4 * number : 4 * number + 4]
            above = _group_heads(group.unpack_zero_padded(row), kv_heads)
            own = slice(-group.longest, None)
            group.pack(weights[..., own].mT @ above, value)
            by_scores = torch.ops.aten._softmax_backward_data(
                above @ values.mT, weights, -1, weights.dtype
            )
            group.pack(by_scores[..., own].mT @ queries, key)
            by_queries = (by_scores @ keys).mul_(ctx.scaling)
            group.pack(_ungroup_heads(by_queries, group.longest), query)
        return *found, None, None, None


def _group_heads(unpacked: Float[Tensor, "h k t c"], heads: int) -> Float[Tensor, "j k gt c"]:
    """Group query heads that share a key head (grouped-query attention)."""
    if unpacked.shape[0] == heads:
        return unpacked
    return torch.unflatten(unpacked, 0, (heads, -1)).transpose(1, 2).flatten(2, 3)


def _ungroup_heads(grouped: Float[Tensor, "j k gt c"], longest: int) -> Float[Tensor, "h k t c"]:
    """Split grouped query heads again, the inverse of :func:`_group_heads`."""
    if grouped.shape[2] == longest:
        return grouped
    return torch.unflatten(grouped, 2, (-1, longest)).transpose(1, 2).flatten(0, 1)


def _split_groups(row: Float[Tensor, "h m c"], groups: Sequence[PackedGroup]) -> tuple[Tensor, ...]:
    """Split a packed row into the tokens of every group."""
    if len(groups) == 1:
        return (row,)
    return torch.split(row, [group.size for group in groups], dim=1)
