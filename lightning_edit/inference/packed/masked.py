"""Attention over few packed texts as one masked product: a row without padding and without groups.

Where a row has few tokens, calls of operators cost more than their work. Then every token is
compared with every key, and a mask hides those of other texts: a tenth of the calls that unpacking
texts takes (:mod:`~lightning_edit.inference.packed.attention`), for a few more products. Keys of
earlier tokens that texts share are there once.

Axis names: ``r`` -- texts; ``m`` -- tokens of the row; ``n`` -- earlier tokens; ``h`` -- heads of
the queries; ``j`` -- heads of the keys, each for ``g`` of the queries; ``c``, ``e`` -- width of a
head's key and value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Most keys of a row, those of earlier tokens and its own, that are all compared with every query.
MOST_KEYS = 256


@dataclass(frozen=True)
class MaskedRow:
    """Assignment of a packed row's tokens to texts, as a mask.

    Make it with :meth:`of`.

    Args:
        lengths: Number of tokens of each text in the row, where they are contiguous.
        before: Which earlier tokens belong to each text.
        past: Keys and values of the earlier tokens, (j, n, c) and (j, n, e), by number of the
            block.
        dtype: Type of the model's hidden states.
    """

    lengths: Int[Tensor, " r"]
    before: Bool[Tensor, "r n"]
    past: Mapping[int, tuple[Tensor, Tensor]]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        lengths: Int[Tensor, " r"],
        earlier: Sequence[Sequence[int]],
        past: Mapping[int, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> "MaskedRow":
        """Lay out texts in one row, in the order given.

        Args:
            lengths: Tokens of each text that go into the row, at least one.
            earlier: Indices among the keys and values of each text's earlier tokens.
            past: Keys and values of earlier tokens; those of no text are left out.
            dtype: Type of the model's hidden states.
        """
        used = {place: number for number, place in enumerate(sorted(set().union(*earlier)))}
        before = torch.zeros(len(lengths), len(used), dtype=torch.bool)
        for row, places in enumerate(earlier):
            before[row, [used[place] for place in places]] = True
        index = torch.tensor(list(used), dtype=torch.long, device=lengths.device)
        kept = {
            number: (keys.index_select(1, index), values.index_select(1, index))
            for number, (keys, values) in past.items()
            if used
        }
        return cls(lengths, before.to(lengths.device), kept, dtype)

    @property
    def order(self) -> Int[Tensor, " r"]:
        """Indices of the texts in row order."""
        return torch.arange(len(self.lengths), device=self.lengths.device)

    @property
    def starts(self) -> Int[Tensor, " r"]:
        """Row index of each text's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def reach(self) -> int:
        """Maximum number of tokens that one token attends to."""
        return int((self.before.sum(1) + self.lengths).max())

    @cached_property
    def mask(self) -> Float[Tensor, "m keys"]:
        """Additive mask of the attention scores, over earlier tokens and the row's own."""
        device = self.lengths.device
        text = self.order.repeat_interleave(self.lengths)
        steps = torch.arange(len(text), device=device)
        own = (text[:, None] == text) & (steps <= steps[:, None])
        seen = torch.cat([self.before[text], own], dim=1)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=device)
        return mask.masked_fill_(~seen, torch.finfo(self.dtype).min)

    @cached_property
    def _masks(self) -> dict[int, Float[Tensor, "gm keys"]]:
        return {}

    def _mask_for(self, shared: int) -> Float[Tensor, "gm keys"]:
        """Return the mask for queries of several heads, one below the other."""
        if shared not in self._masks:
            self._masks[shared] = self.mask.repeat(shared, 1)
        return self._masks[shared]

    def tokens(self, starts: Int[Tensor, " r"]) -> Int[Tensor, " m"]:
        """Return the indices of the row's tokens in another row.

        Args:
            starts: Index of each text's first token there; the others follow it.
        """
        steps = torch.arange(int(self.lengths.sum()), device=starts.device)
        return steps + (starts - self.starts).repeat_interleave(self.lengths)

    def select(self, rows: Int[Tensor, " k"]) -> "MaskedRow":
        """Return the layout of selected texts, repeats allowed, in the given order.

        Args:
            rows: Indices of the texts.
        """
        before = self.before[rows]
        used = before.any(0).nonzero().squeeze(1)
        past = {
            number: (keys.index_select(1, used), values.index_select(1, used))
            for number, (keys, values) in self.past.items()
            if len(used)
        }
        return MaskedRow(self.lengths[rows], before[:, used], past, self.dtype)

    def drop_blocks_below(self, block: int) -> "MaskedRow":
        """Return the layout without the keys and values of the blocks below one.

        Args:
            block: Number of the block.
        """
        past = {number: pair for number, pair in self.past.items() if number >= block}
        return replace(self, past=past)

    def attend(
        self,
        block: int,
        query: Float[Tensor, "1 h m c"],
        key: Float[Tensor, "1 j m c"],
        value: Float[Tensor, "1 j m e"],
        scaling: float | None,
    ) -> Float[Tensor, "1 m h e"]:
        """Return causal attention softmax(scaling · q kᵀ) v of every text, over all its tokens.

        Args:
            block: Number of the block, to look up earlier keys and values.
            query: Queries of all tokens.
            key: Keys, possibly of fewer heads (grouped-query attention).
            value: Values of the same heads.
            scaling: ``None``: one over the root of a head's width.
        """
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        # Unlike an index, this has a view as its gradient.
        queries, keys, values = query.squeeze(0), key.squeeze(0), value.squeeze(0)
        heads, tokens, _ = queries.shape
        shared = heads // len(keys)
        if shared > 1:
            queries = torch.unflatten(queries, 0, (-1, shared)).flatten(1, 2)
        if block in self.past:
            keys, values = (
                torch.cat([old, new], dim=1)
                for old, new in zip(self.past[block], (keys, values), strict=True)
            )
        scores = torch.baddbmm(self._mask_for(shared), queries, keys.mT, alpha=factor)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide).to(scores.dtype)
        found = torch.bmm(weights, values)
        if shared > 1:
            found = torch.unflatten(found, 1, (shared, tokens)).flatten(0, 1)
        return found.transpose(0, 1)[None]
