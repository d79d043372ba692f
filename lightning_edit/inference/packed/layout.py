"""Texts of unequal length side by side in one row, without padding.

Everything in a transformer but attention works token by token, so the tokens of all texts can
stand in one row; only attention has to know which belong together. A model's attention is
replaced (:mod:`~lightning_edit.inference.packed.backend`), and that is all:
:mod:`~lightning_edit.inference.packed.attention` gives queries, keys and values the shape of texts
again, puts the keys and values of earlier tokens in front, and returns the result into the row.
Texts of like length go through attention together, so that little of its work is padding.

Axis names: ``r`` -- texts; ``k`` -- texts of a part; ``m`` -- tokens of a row; ``n`` -- tokens of a
pool; ``p`` -- most earlier tokens of a text; ``j`` -- heads of the keys; ``c``, ``e`` -- width of a
head's key and value.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_edit.inference.packed.attention import PackedGroup, attend
from lightning_edit.inference.packed.backend import NotPackableError, replaced_attention
from lightning_edit.models.view import ModelView

#: Most parts that a row is cut into.
_PARTS = 4
#: So much padding costs less than a further part.
_PADDING = 200


@dataclass(frozen=True)
class KVPool:
    """Keys and values of tokens that texts have gone through already.

    Args:
        blocks: Keys and values, (j, n, c) and (j, n, e), by number of the block.
        size: Tokens n.
    """

    blocks: Mapping[int, tuple[Tensor, Tensor]]
    size: int

    def plus(self, blocks: Mapping[int, tuple[Tensor, Tensor]]) -> "KVPool":
        """Return a pool with further tokens, placed behind these."""
        added = next(iter(blocks.values()))[0].shape[1]
        if not self.size:
            return KVPool(blocks, added)
        pairs = {n: zip(pair, blocks[n], strict=True) for n, pair in self.blocks.items()}
        joined = {n: (torch.cat(k, dim=1), torch.cat(v, dim=1)) for n, (k, v) in pairs.items()}
        return KVPool(joined, self.size + added)

    def at(self, index: Int[Tensor, "k p"]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the keys and values of some tokens, (j, k, p, c) and (j, k, p, e)."""
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
    """Which tokens of a row belong to which text.

    Args:
        parts: Texts of like length; their tokens follow each other in the row.
    """

    parts: tuple[PackedGroup, ...]

    @classmethod
    def of(
        cls,
        lengths: Int[Tensor, " r"],
        earlier: Sequence[Sequence[int]],
        pool: "KVPool",
        dtype: torch.dtype,
    ) -> "Packing":
        """Lay texts out.

        Args:
            lengths: Tokens of each text that go into the row, at least one.
            earlier: Places in the pool of the tokens that go before.
            pool: Keys and values of earlier tokens.
            dtype: Type of the model's hidden states.
        """
        parts = []
        for rows in _alike(lengths):
            listed = [earlier[row] for row in rows.tolist()]
            width = max(map(len, listed))
            # Room for the texts' own tokens is filled with any of the pool's.
            room = [0] * int(lengths[rows].max())
            padded = [[0] * (width - len(one)) + list(one) + room for one in listed]
            index = torch.tensor(padded, dtype=torch.long, device=lengths.device)
            counts = torch.tensor([[len(one)] for one in listed], device=lengths.device)
            before = torch.arange(width, device=lengths.device) >= width - counts
            past = pool.at(index) if width else {}
            parts.append(PackedGroup.of(rows, lengths[rows], before, past, dtype))
        return cls(tuple(parts))

    def above(self, block: int) -> "Packing":
        """Return this without the earlier tokens' keys and values in the blocks below one."""
        parts = []
        for part in self.parts:
            past = {n: pair for n, pair in part.past.items() if n >= block}
            parts.append(replace(part, past=past))
        return Packing(tuple(parts))

    @property
    def starts(self) -> Int[Tensor, " r"]:
        """Place of each text's first token in the row."""
        numbers = torch.cat([part.numbers for part in self.parts])
        lengths = torch.cat([part.lengths for part in self.parts])
        starts = torch.empty_like(lengths)
        starts[numbers] = lengths.cumsum(0) - lengths
        return starts

    @property
    def order(self) -> Int[Tensor, " r"]:
        """The texts in the order of the row."""
        return torch.cat([part.numbers for part in self.parts])

    def tokens(self, starts: Int[Tensor, " r"]) -> Int[Tensor, " m"]:
        """Return where the row's tokens are in another row.

        Args:
            starts: Place of each text's first token there; the others follow it.
        """
        lengths = torch.cat([part.lengths for part in self.parts])
        steps = torch.arange(int(lengths.sum()), device=lengths.device)
        shift = starts[self.order] - lengths.cumsum(0) + lengths
        return steps + shift.repeat_interleave(lengths)

    def select(self, rows: Int[Tensor, " k"]) -> "Packing":
        """Return the packing of some texts, some maybe several times, numbered as given."""
        parts = []
        for part in self.parts:
            numbers, within = (rows[:, None] == part.numbers).nonzero(as_tuple=True)
            if len(numbers):
                parts.append(part.select(numbers, within))
        return Packing(tuple(parts))


def _alike(lengths: Int[Tensor, " r"]) -> list[Int[Tensor, " k"]]:
    """PackedGroup texts by their length, so that few parts hold little padding."""
    kinds, counts = (one.tolist() for one in torch.unique(lengths, return_counts=True))
    while len(kinds) > 1:
        padding = [
            count * (above - length)
            for count, length, above in zip(counts, kinds, kinds[1:], strict=False)
        ]
        least = padding.index(min(padding))
        if len(kinds) <= _PARTS and padding[least] > _PADDING:
            break
        del kinds[least]
        counts[least : least + 2] = [sum(counts[least : least + 2])]
    numbers = torch.bucketize(lengths, torch.tensor(kinds, device=lengths.device))
    return [(numbers == number).nonzero().squeeze(1) for number in range(len(kinds))]


@contextmanager
def attending(
    view: ModelView,
    packing: Packing,
    kept: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Iterator[list[int]]:
    """Let the model's attention treat one row as the texts that it is made of.

    Args:
        view: The model's structure; the model is called without a cache and without a mask.
        packing: Which tokens belong together, and what went before them.
        kept: Gets keys and values of the row, (j, m, c) and (j, m, e), by number of the block.

    Yields:
        A list that fills up with the numbers of the blocks whose attention ran.
    """
    number_of = {
        id(module): number
        for number, block in enumerate(view.blocks)
        for module in block.module.modules()
    }
    seen: list[int] = []

    def own(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        number = number_of.get(id(module))
        if number is None:
            raise NotPackableError
        seen.append(number)
        if kept is not None:
            kept[number] = key[0], value[0]
        return attend(packing.parts, number, query, key, value, scaling)

    longest = max(part.mask.shape[-1] for part in packing.parts)
    with replaced_attention(view.model, own, longest):
        yield seen
