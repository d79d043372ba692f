"""Read what modules get or give at the last token of texts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.forward import PackedRow, Piece, prefill_prefixes
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView


@torch.no_grad()
def read_last(
    view: ModelView, texts: Sequence[TokenizedText], wanted: Mapping[str, Side], rows_per_pass: int
) -> dict[str, Tensor]:
    """Read several modules in one pass over texts.

    Args:
        view: The language model's structure.
        texts: The texts; each is read at its last token.
        wanted: ``input`` or ``output``, by dotted name of a block or a module in one.
        rows_per_pass: Most texts in one pass; bounds memory, changes no result.

    Returns:
        By module, one line a text, (r, w), in float64.
    """
    try:
        return _in_one_row(view, texts, wanted, rows_per_pass)
    except NotPackableError:
        return _padded(view, texts, wanted, rows_per_pass)


def _in_one_row(
    view: ModelView, texts: Sequence[TokenizedText], wanted: Mapping[str, Side], rows_per_pass: int
) -> dict[str, Tensor]:
    """Read where all texts stand in one row; what many begin with is run once."""
    names = [f"{block.name}." for block in view.blocks]
    top = max(names.index(name) for name in names for one in wanted if f"{one}.".startswith(name))
    pool, leads = prefill_prefixes(view, [text.ids[: text.lead] for text in texts], top)
    parts, order = [], []
    lengths = [len(text.ids) - text.lead for text in texts]
    for rows in length_sorted(lengths, rows_per_pass):
        pieces = [Piece(texts[row].ids[texts[row].lead :], leads[row]) for row in rows]
        line = PackedRow.of(view, pieces, pool)
        starts = line.packing.starts
        last = starts + torch.tensor([len(piece.ids) - 1 for piece in pieces], device=starts.device)
        seen = line.read(view, wanted, top)
        parts.append({name: value[0, last].double() for name, value in seen.items()})
        order += rows
    return _in_order(parts, order)


def _padded(
    view: ModelView, texts: Sequence[TokenizedText], wanted: Mapping[str, Side], rows_per_pass: int
) -> dict[str, Tensor]:
    """Read where every text has a row of its own."""
    device = view.embeddings.get_parameter("weight").device
    parts, order = [], []
    lengths = [len(text.ids) for text in texts]
    for rows in length_sorted(lengths, rows_per_pass):
        ids, mask = pad([texts[row].ids for row in rows])
        with capture(view.model, wanted, stop=True) as seen:
            view.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        places = torch.arange(len(rows)), torch.tensor([lengths[row] - 1 for row in rows])
        parts.append({name: value[places].double() for name, value in seen.items()})
        order += rows
    return _in_order(parts, order)


def _in_order(parts: Sequence[dict[str, Tensor]], order: Sequence[int]) -> dict[str, Tensor]:
    """Join passes over some texts each, and bring the lines into the order of the texts."""
    places = torch.tensor(order).argsort()
    names = parts[0]
    joined = {name: torch.cat([part[name] for part in parts]) for name in names}
    return {name: lines[places.to(lines.device)] for name, lines in joined.items()}
