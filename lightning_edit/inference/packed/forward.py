"""Passes over pieces of texts side by side in one row, each going on from what came before it.

What many texts begin with goes through the model once. Everything here raises
:class:`~lightning_edit.inference.packed.backend.NotPackableError` where the model's attention
cannot be replaced; callers then pad.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.packed.backend import NotPackableError, packable
from lightning_edit.inference.packed.layout import KVPool, Packing, attending
from lightning_edit.models.view import ModelView


@dataclass(frozen=True)
class Piece:
    """Tokens that follow each other in a text.

    Args:
        ids: The tokens, at least one.
        earlier: Places in a pool of all tokens of the text that go before.
    """

    ids: tuple[int, ...]
    earlier: tuple[int, ...] = ()


@dataclass(frozen=True)
class PackedRow:
    """Pieces in one row.

    Make it with :meth:`of`.

    Args:
        packing: Which tokens belong together.
        inputs: The model's arguments.
    """

    packing: Packing
    inputs: dict[str, Tensor]

    @classmethod
    def of(cls, view: ModelView, pieces: Sequence[Piece], pool: KVPool) -> "PackedRow":
        """Lay pieces out.

        Args:
            view: The language model's structure.
            pieces: What goes into the row.
            pool: Keys and values of what goes before.
        """
        if not packable(view.model):
            raise NotPackableError
        weight = view.embeddings.get_parameter("weight")
        lengths = torch.tensor([len(piece.ids) for piece in pieces], device=weight.device)
        packing = Packing.of(lengths, [piece.earlier for piece in pieces], pool, weight.dtype)
        listed = [pieces[number] for number in packing.order.tolist()]
        positions = [
            len(piece.earlier) + step for piece in listed for step in range(len(piece.ids))
        ]
        ids = [token for piece in listed for token in piece.ids]
        inputs = {"input_ids": ids, "position_ids": positions}
        return cls(
            packing,
            {name: torch.tensor([row], device=weight.device) for name, row in inputs.items()},
        )

    def read(self, view: ModelView, wanted: Mapping[str, Side], until: int) -> dict[str, Tensor]:
        """Return what modules get or give, (1, m, w), as :func:`~.hooks.capture` does.

        Args:
            view: The language model's structure.
            wanted: ``input``, ``output`` or ``both``, by dotted name of the module.
            until: The highest block that has one of them.
        """
        with (
            attending(view, self.packing) as ran,
            capture(view.model, wanted, stop=True) as seen,
        ):
            view.model(**self.inputs, use_cache=False)
        _check(ran, until)
        return seen

    def kept(self, view: ModelView, until: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and values of the row's tokens, by number of the block.

        Args:
            view: The language model's structure.
            until: The highest block that is wanted; nothing behind its attention runs.
        """
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        wanted: dict[str, Side] = {view.block(until).attention_out: "input"}
        with (
            attending(view, self.packing, kept) as ran,
            capture(view.model, wanted, stop=True),
        ):
            view.model(**self.inputs, use_cache=False)
        _check(ran, until)
        return kept


def _check(ran: Sequence[int], until: int) -> None:
    """Refuse a model in which something else than the replaced attention mixes tokens."""
    if list(ran) != list(range(until + 1)):
        raise NotPackableError


def prefill(
    view: ModelView, pieces: Sequence[Piece], pool: KVPool, until: int
) -> tuple[KVPool, list[range]]:
    """Run pieces through the model, for their keys and values.

    Args:
        view: The language model's structure.
        pieces: What is run; none: nothing.
        pool: What goes before.
        until: The highest block whose keys and values are wanted.

    Returns:
        The pool with all tokens of the pieces, and where those of each piece are.
    """
    if not pieces:
        return pool, []
    row = PackedRow.of(view, pieces, pool)
    starts = (row.packing.starts + pool.size).tolist()
    places = [
        range(start, start + len(piece.ids)) for start, piece in zip(starts, pieces, strict=True)
    ]
    return pool.plus(row.kept(view, until)), places


def prefill_prefixes(
    view: ModelView, leads: Sequence[tuple[int, ...]], until: int
) -> tuple[KVPool, list[tuple[int, ...]]]:
    """Run the beginnings of texts through the model, each kind once.

    Args:
        view: The language model's structure.
        leads: Tokens that each text begins with; none for some.
        until: The highest block whose keys and values are wanted.

    Returns:
        A pool, and where it has the tokens of each text.
    """
    kinds = [kind for kind in dict.fromkeys(leads) if kind]
    pool, places = prefill(view, [Piece(kind) for kind in kinds], KVPool({}, 0), until)
    found = {kind: tuple(where) for kind, where in zip(kinds, places, strict=True)}
    return pool, [found.get(lead, ()) for lead in leads]
