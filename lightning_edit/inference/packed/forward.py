"""Forward passes over packed text spans, each continued from its KV cache, and prefill.

A shared prefix goes through the model once. Everything here raises
:class:`~lightning_edit.inference.packed.backend.NotPackableError` where the model's attention
cannot be replaced; callers then pad.

Axis names: ``p`` -- tokens that are read; ``v`` -- vocabulary.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.packed.backend import NotPackableError, packable
from lightning_edit.inference.packed.block_inputs import BlockInputs
from lightning_edit.inference.packed.layout import KVPool, RowLayout, lay_out, packed_attention
from lightning_edit.models.view import ModelView


@dataclass(frozen=True)
class TextSpan:
    """Contiguous tokens of a text, with the KV-cache indices of the tokens before them.

    Args:
        ids: The tokens, at least one.
        earlier: Indices in a KV pool of all earlier tokens of the text.
    """

    ids: tuple[int, ...]
    earlier: tuple[int, ...] = ()


@dataclass(frozen=True)
class PackedRow:
    """Text spans packed in one row, as model inputs without padding.

    Make it with :meth:`of`.

    Args:
        packing: Assignment of tokens to texts.
        inputs: Arguments of the model.
    """

    packing: RowLayout
    inputs: dict[str, Tensor]

    @classmethod
    def of(cls, view: ModelView, spans: Sequence[TextSpan], pool: KVPool) -> "PackedRow":
        """Pack text spans into one row.

        Args:
            view: The language model's structure.
            spans: The spans.
            pool: Keys and values of the earlier tokens.
        """
        if not packable(view.model):
            raise NotPackableError
        weight = view.embeddings.get_parameter("weight")
        lengths = torch.tensor([len(span.ids) for span in spans], device=weight.device)
        packing = lay_out(lengths, [span.earlier for span in spans], pool, weight.dtype)
        listed = [spans[number] for number in packing.order.tolist()]
        positions = [len(span.earlier) + step for span in listed for step in range(len(span.ids))]
        ids = [token for span in listed for token in span.ids]
        inputs = {"input_ids": ids, "position_ids": positions}
        return cls(
            packing,
            {name: torch.tensor([row], device=weight.device) for name, row in inputs.items()},
        )

    def read(
        self,
        view: ModelView,
        wanted: Mapping[str, Side],
        until: int,
        inputs: BlockInputs | None = None,
        row: Hashable = 0,
    ) -> dict[str, Tensor]:
        """Capture module inputs or outputs, (1, m, w), as :func:`~.hooks.capture` does.

        Args:
            view: The language model's structure.
            wanted: ``input``, ``output`` or ``both``, by dotted name of the module.
            until: The highest block that has one of them.
            inputs: What earlier readings of the same row have kept.
            row: Name of this row among them.
        """
        with (
            _reused(inputs, row) as first,
            packed_attention(view, self.packing) as ran,
            capture(view.model, wanted, stop=True) as captured,
        ):
            view.model(**self.inputs, use_cache=False)
        _require_attention_of_blocks(ran, until, first)
        return captured

    def logits(self, view: ModelView, places: Int[Tensor, " p"]) -> Float[Tensor, "p v"]:
        """Return logits at tokens of the row, in at least single precision.

        Gradients flow to whatever acts in the pass. Take them before the row is run again.

        Args:
            view: The language model's structure.
            places: Indices of the tokens.
        """
        with packed_attention(view, self.packing) as ran:
            found = logits_at(view.model, self.inputs, (torch.zeros_like(places), places))
        _require_attention_of_blocks(ran, view.num_blocks - 1)
        return wide(found)

    def keys_and_values(
        self,
        view: ModelView,
        until: int,
        inputs: BlockInputs | None = None,
        row: Hashable = 0,
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and values of the row's tokens, by number of the block.

        Args:
            view: The language model's structure.
            until: The highest block that is wanted; nothing after its attention runs.
            inputs: What earlier readings have kept; blocks below have no keys and values then.
            row: Name of this row among them.
        """
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        wanted: dict[str, Side] = {view.block(until).attention_out: "input"}
        with (
            _reused(inputs, row) as first,
            packed_attention(view, self.packing, kept) as ran,
            capture(view.model, wanted, stop=True),
        ):
            view.model(**self.inputs, use_cache=False)
        _require_attention_of_blocks(ran, until, first)
        return kept


def _reused(inputs: BlockInputs | None, row: Hashable) -> AbstractContextManager[int]:
    return nullcontext(0) if inputs is None else inputs.reused(row)


def _require_attention_of_blocks(ran: Sequence[int], until: int, first: int = 0) -> None:
    """Check that nothing but the replaced attention mixes tokens."""
    if list(ran) != list(range(first, until + 1)):
        raise NotPackableError


def prefill(
    view: ModelView,
    spans: Sequence[TextSpan],
    pool: KVPool,
    until: int,
    inputs: BlockInputs | None = None,
) -> tuple[KVPool, list[range]]:
    """Prefill the KV pool: run spans through the model and store their keys and values.

    Args:
        view: The language model's structure.
        spans: The spans; if there are none, nothing runs.
        pool: Keys and values of the earlier tokens.
        until: The highest block whose keys and values are wanted.
        inputs: What earlier readings of the same spans have kept.

    Returns:
        The pool with all tokens of the spans, and the indices of each span's tokens.
    """
    if not spans:
        return pool, []
    row = PackedRow.of(view, spans, pool)
    starts = (row.packing.starts + pool.size).tolist()
    places = [
        range(start, start + len(span.ids)) for start, span in zip(starts, spans, strict=True)
    ]
    return pool.with_tokens(row.keys_and_values(view, until, inputs, "prefill")), places


def prefill_prefixes(
    view: ModelView,
    prefixes: Sequence[tuple[int, ...]],
    until: int,
    inputs: BlockInputs | None = None,
) -> tuple[KVPool, list[tuple[int, ...]]]:
    """Prefill the KV pool with the prefixes of texts, each distinct prefix once.

    Args:
        view: The language model's structure.
        prefixes: Prefix tokens of each text; may be empty.
        until: The highest block whose keys and values are wanted.
        inputs: What earlier readings of the same prefixes have kept.

    Returns:
        The pool, and the indices of each text's prefix tokens in it.
    """
    unique = [one for one in dict.fromkeys(prefixes) if one]
    pool, places = prefill(view, [TextSpan(one) for one in unique], KVPool({}, 0), until, inputs)
    found = {one: tuple(where) for one, where in zip(unique, places, strict=True)}
    return pool, [found.get(prefix, ()) for prefix in prefixes]
