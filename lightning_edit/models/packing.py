"""Texts of unequal length side by side in one row, without padding.

Everything in a transformer but attention works token by token, so the tokens of all texts can
stand in one row; only attention has to know which belong together. transformers lets a model's
attention be replaced by name, and that is all that happens here:
:mod:`~lightning_edit.models.packed_attention` gives queries, keys and values the shape of texts
again, puts the keys and values of earlier tokens in front, and returns the result into the row.
Texts of like length go through attention together, so that little of its work is padding.

Axis names: ``r`` -- texts; ``k`` -- texts of a part; ``m`` -- tokens of a row; ``t`` -- most tokens
of a text; ``p`` -- most tokens of a text in the cache; ``h`` -- heads; ``c`` -- width of a head.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_edit.models.packed_attention import Part, attend
from lightning_edit.models.view import ModelView

#: The attention function that is softmax(scaling · q kᵀ + mask) v and no more.
_OWN = "sdpa"
#: Arguments that make attention more than that.
_MORE = ("position_bias", "cache", "softcap", "s_aux")
#: Most parts that a row is cut into.
_PARTS = 4


class NotPackableError(Exception):
    """The model's attention cannot be told which tokens belong together; never leaves the tail."""


def configs_of(model: nn.Module) -> list[Any]:
    """Return the distinct configs by which a model's modules choose their attention."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def packable(model: nn.Module) -> bool:
    """Say whether all of a model's attention can be replaced by name, and is nothing special."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    return all(config._attn_implementation == _OWN for config in configs_of(model))


@dataclass(frozen=True)
class Packing:
    """Which tokens of a row belong to which text.

    Args:
        parts: Texts of like length; their tokens follow each other in the row.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls,
        before: Bool[Tensor, "r p"],
        lengths: Int[Tensor, " r"],
        past: Mapping[int, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> "Packing":
        """Lay texts out.

        Args:
            before: Which places of the cache are tokens of a text.
            lengths: Tokens of each text that go into the row, at least one.
            past: The cache: keys and values, (r, h, p, c), by number of the block.
            dtype: Type of the model's hidden states.
        """
        cached = before.sum(1)
        parts = []
        for rows in _alike(lengths):
            # Tokens first come last, wherever the cache has its padding.
            width = int(cached[rows].max())
            columns = before[rows].int().argsort(dim=1, stable=True)[:, before.shape[1] - width :]
            kept = {block: _own_columns(pair, rows, columns) for block, pair in past.items()}
            mask = before[rows].gather(1, columns)
            parts.append(Part.of(rows, lengths[rows], mask, kept, dtype))
        return cls(tuple(parts))

    @property
    def starts(self) -> Int[Tensor, " r"]:
        """Place of each text's first token in the row."""
        numbers = torch.cat([part.numbers for part in self.parts])
        lengths = torch.cat([part.lengths for part in self.parts])
        starts = torch.empty_like(lengths)
        starts[numbers] = lengths.cumsum(0) - lengths
        return starts

    def tokens(self, starts: Int[Tensor, " r"]) -> Int[Tensor, " m"]:
        """Return where the row's tokens are in another layout.

        Args:
            starts: Place of each text's first token there; the others follow it.
        """
        numbers = torch.cat([part.numbers for part in self.parts])
        lengths = torch.cat([part.lengths for part in self.parts])
        steps = torch.arange(int(lengths.sum()), device=lengths.device)
        return steps + (starts[numbers] - lengths.cumsum(0) + lengths).repeat_interleave(lengths)

    def select(self, rows: Int[Tensor, " k"]) -> "Packing":
        """Return the packing of some texts, some maybe several times, numbered as given."""
        parts = []
        for part in self.parts:
            numbers, within = (rows[:, None] == part.numbers).nonzero(as_tuple=True)
            if len(numbers):
                parts.append(part.select(numbers, within))
        return Packing(tuple(parts))


def _alike(lengths: Int[Tensor, " r"]) -> list[Int[Tensor, " k"]]:
    """Part texts by their length, so that few parts hold little padding."""
    kinds, counts = (one.tolist() for one in lengths.unique(return_counts=True))
    while len(kinds) > _PARTS:
        padding = [
            count * (above - length)
            for count, length, above in zip(counts, kinds, kinds[1:], strict=False)
        ]
        least = padding.index(min(padding))
        del kinds[least]
        counts[least : least + 2] = [sum(counts[least : least + 2])]
    numbers = torch.bucketize(lengths, torch.tensor(kinds, device=lengths.device))
    return [(numbers == number).nonzero().squeeze(1) for number in range(len(kinds))]


def _own_columns(
    pair: tuple[Tensor, Tensor], rows: Tensor, columns: Int[Tensor, "k p"]
) -> tuple[Tensor, Tensor]:
    """Return some rows of a block's keys and values, and some tokens of each; heads come first."""
    keys, values = (
        kind[rows]
        .gather(2, columns[:, None, :, None].expand(-1, kind.shape[1], -1, kind.shape[3]))
        .transpose(0, 1)
        .contiguous()
        for kind in pair
    )
    return keys, values


@contextmanager
def attending(view: ModelView, packing: Packing) -> Iterator[list[int]]:
    """Let the model's attention treat one row as the texts that it is made of.

    Args:
        view: The model's structure; the model is called without a cache and without a mask.
        packing: Which tokens belong together, and what went before them.

    Yields:
        A list that fills up with the numbers of the blocks whose attention ran.
    """
    number_of = {
        id(module): number
        for number, block in enumerate(view.blocks)
        for module in block.module.modules()
    }
    seen: list[int] = []
    longest = max(part.mask.shape[-1] for part in packing.parts)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
    ) -> tuple[Tensor, None]:
        number = number_of.get(id(module))
        window = rest.get("sliding_window")
        more = rest.get("dropout") or any(rest.get(name) is not None for name in _MORE)
        if number is None or mask is not None or more or (window and window < longest):
            raise NotPackableError
        seen.append(number)
        return attend(packing.parts, number, query, key, value, rest.get("scaling")), None

    name = f"lightning_edit_packed_{id(packing)}"
    configs = configs_of(view.model)
    ALL_ATTENTION_FUNCTIONS[name] = attention
    try:
        for config in configs:
            config._attn_implementation = name
        yield seen
    finally:
        for config in configs:
            config._attn_implementation = _OWN
        del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]  # transformers'
