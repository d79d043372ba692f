"""Packing of texts of unequal length into one row, for padding-free attention.

Everything in a transformer but attention works token by token, so the tokens of all texts can share
one row; only attention has to know which belong together. Only the model's attention is replaced
(:mod:`~lightning_edit.inference.packed.backend`): :mod:`~lightning_edit.inference.packed.attention`
unpacks queries, keys and values into texts, prepends the cached keys and values of earlier tokens,
and packs the result into the row. Texts of similar length go through attention as one group, so
that little of its work is padding. A row of few tokens has a mask instead
(:mod:`~lightning_edit.inference.packed.masked`).

Axis names: ``r`` -- texts; ``k`` -- texts of a group; ``m`` -- tokens of a row; ``n`` -- tokens of
a pool; ``p`` -- maximum number of earlier tokens of a text; ``j`` -- heads of the keys; ``c``,
``e`` -- width of a head's key and value.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_edit.inference.packed.attention import PackedGroup, attend
from lightning_edit.inference.packed.backend import NotPackableError, replaced_attention
from lightning_edit.inference.packed.masked import MOST_KEYS, MaskedRow
from lightning_edit.models.view import ModelView

#: Maximum number of groups that a row is split into.
_MAX_GROUPS = 4
#: Number of padding tokens that cost less than one more group.
_CHEAP_PADDING = 200


@dataclass(frozen=True)
class KVPool:
    """KV cache of earlier tokens, pooled over texts.

    Args:
        blocks: Keys and values, (j, n, c) and (j, n, e), by number of the block.
        size: Number of tokens n.
    """

    blocks: Mapping[int, tuple[Tensor, Tensor]]
    size: int

    def with_tokens(self, blocks: Mapping[int, tuple[Tensor, Tensor]]) -> "KVPool":
        """Return the KV pool with further tokens appended."""
        added = next(iter(blocks.values()))[0].shape[1]
        if not self.size:
            return KVPool(blocks, added)
        pairs = {n: zip(pair, blocks[n], strict=True) for n, pair in self.blocks.items()}
        joined = {n: (torch.cat(k, dim=1), torch.cat(v, dim=1)) for n, (k, v) in pairs.items()}
        return KVPool(joined, self.size + added)

    def at(self, index: Int[Tensor, "k p"]) -> dict[int, tuple[Tensor, Tensor]]:
        """Gather keys and values of selected tokens, (j, k, p, c) and (j, k, p, e)."""
        places, shape = index.flatten(), index.shape
        return {
            number: (
                torch.unflatten(keys.index_select(1, places), 1, shape),
                torch.unflatten(values.index_select(1, places), 1, shape),
            )
            for number, (keys, values) in self.blocks.items()
        }


@dataclass(frozen=True)
class Packing:
    """Assignment of a packed row's tokens to texts, in groups of similar length.

    Args:
        groups: Texts of similar length; their tokens are contiguous in the row.
    """

    groups: tuple[PackedGroup, ...]

    @classmethod
    def of(
        cls,
        lengths: Int[Tensor, " r"],
        earlier: Sequence[Sequence[int]],
        pool: "KVPool",
        dtype: torch.dtype,
    ) -> "Packing":
        """Pack texts into one row, in groups of similar length.

        Args:
            lengths: Tokens of each text that go into the row, at least one.
            earlier: Indices in the pool of each text's earlier tokens.
            pool: Keys and values of earlier tokens.
            dtype: Type of the model's hidden states.
        """
        groups = []
        for rows in _group_by_length(lengths):
            listed = [earlier[row] for row in rows.tolist()]
            width = max(map(len, listed))
            # Slots for the texts' own tokens hold any pool token until a pass overwrites them.
            slots = [0] * int(lengths[rows].max())
            padded = [[0] * (width - len(one)) + list(one) + slots for one in listed]
            index = torch.tensor(padded, dtype=torch.long, device=lengths.device)
            counts = torch.tensor([[len(one)] for one in listed], device=lengths.device)
            before = torch.arange(width, device=lengths.device) >= width - counts
            past = pool.at(index) if width else {}
            groups.append(PackedGroup.of(rows, lengths[rows], before, past, dtype))
        return cls(tuple(groups))

    def drop_blocks_below(self, block: int) -> "Packing":
        """Return the packing without the cached keys and values of the blocks below one."""
        groups = []
        for group in self.groups:
            past = {n: pair for n, pair in group.past.items() if n >= block}
            groups.append(replace(group, past=past))
        return Packing(tuple(groups))

    @property
    def reach(self) -> int:
        """Maximum number of tokens that one token attends to, padding included."""
        return max(group.mask.shape[-1] for group in self.groups)

    def attend(
        self, block: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Return the attention of every text; see :func:`~.packed.attention.attend`."""
        return attend(self.groups, block, query, key, value, scaling)

    @property
    def starts(self) -> Int[Tensor, " r"]:
        """Row index of each text's first token."""
        numbers = torch.cat([group.numbers for group in self.groups])
        lengths = torch.cat([group.lengths for group in self.groups])
        starts = torch.empty_like(lengths)
        starts[numbers] = lengths.cumsum(0) - lengths
        return starts

    @property
    def order(self) -> Int[Tensor, " r"]:
        """Indices of the texts in row order."""
        return torch.cat([group.numbers for group in self.groups])

    def tokens(self, starts: Int[Tensor, " r"]) -> Int[Tensor, " m"]:
        """Return the indices of the row's tokens in another row.

        Args:
            starts: Index of each text's first token there; the others follow it.
        """
        lengths = torch.cat([group.lengths for group in self.groups])
        steps = torch.arange(int(lengths.sum()), device=lengths.device)
        shift = starts[self.order] - lengths.cumsum(0) + lengths
        return steps + shift.repeat_interleave(lengths)

    def select(self, rows: Int[Tensor, " k"]) -> "Packing":
        """Return the packing of selected texts, repeats allowed, numbered in the given order."""
        groups = []
        for group in self.groups:
            numbers, within = (rows[:, None] == group.numbers).nonzero(as_tuple=True)
            if len(numbers):
                groups.append(group.select(numbers, within))
        return Packing(tuple(groups))


RowLayout = Packing | MaskedRow
"""Which tokens of a packed row belong to which text, and how they attend to each other."""


def lay_out(
    lengths: Int[Tensor, " r"],
    earlier: Sequence[Sequence[int]],
    pool: KVPool,
    dtype: torch.dtype,
) -> RowLayout:
    """Pack texts into one row; how they attend follows from the number of keys alone.

    Args:
        lengths: Tokens of each text that go into the row, at least one.
        earlier: Indices in the pool of each text's earlier tokens.
        pool: Keys and values of earlier tokens.
        dtype: Type of the model's hidden states.
    """
    if int(lengths.sum()) + len(set().union(*earlier)) <= MOST_KEYS:
        return MaskedRow.of(lengths, earlier, pool.blocks, dtype)
    return Packing.of(lengths, earlier, pool, dtype)


def _group_by_length(lengths: Int[Tensor, " r"]) -> list[Int[Tensor, " k"]]:
    """Group texts by length, so that few groups hold little padding."""
    kinds, counts = (one.tolist() for one in torch.unique(lengths, return_counts=True))
    while len(kinds) > 1:
        padding = [
            count * (above - length)
            for count, length, above in zip(counts, kinds, kinds[1:], strict=False)
        ]
        least = padding.index(min(padding))
        if len(kinds) <= _MAX_GROUPS and padding[least] > _CHEAP_PADDING:
            break
        del kinds[least]
        counts[least : least + 2] = [sum(counts[least : least + 2])]
    numbers = torch.bucketize(lengths, torch.tensor(kinds, device=lengths.device))
    return [(numbers == number).nonzero().squeeze(1) for number in range(len(kinds))]


@contextmanager
def packed_attention(
    view: ModelView,
    packing: RowLayout,
    kept: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Iterator[list[int]]:
    """Use padding-free attention: the model treats one packed row as separate texts.

    Args:
        view: The model's structure; the model is called without a cache and without a mask.
        packing: Assignment of tokens to texts, and their cached keys and values.
        kept: Dictionary that receives keys and values of the row, (j, m, c) and (j, m, e), by
            number of the block.

    Yields:
        A list that collects the numbers of the blocks whose attention ran.
    """
    called: list[int] = []

    def replacement(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        number = view.block_numbers.get(id(module))
        if number is None:
            raise NotPackableError
        called.append(number)
        if kept is not None:
            kept[number] = key[0], value[0]
        return packing.attend(number, query, key, value, scaling)

    with replaced_attention(view.configs, replacement, packing.reach):
        yield called
