"""Hidden states at the last token of texts: module inputs or outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.padding import pad
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.hooks import Side, capture
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.block_inputs import BlockInputs
from lightning_edit.inference.packed.forward import PackedRow, TextSpan, prefill_prefixes
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView


@torch.no_grad()
def read_last(
    view: ModelView,
    texts: Sequence[TokenizedText],
    wanted: Mapping[str, Side],
    rows_per_pass: int,
    ranks: OneProcess = ALONE,
    inputs: BlockInputs | None = None,
) -> dict[str, Tensor]:
    """Return hidden states (module inputs or outputs) at the last token of each text.

    Args:
        view: The language model's structure.
        texts: The texts; each is read at its last token.
        wanted: ``input`` or ``output``, by dotted name of a block or of a module inside one.
        rows_per_pass: Maximum number of texts per pass; bounds memory, changes no result.
        ranks: The processes that read together; each takes whole passes.
        inputs: What earlier readings of the same texts have kept, and what this one is to keep.
            Padded rows, where attention cannot be packed, keep nothing and run whole.

    Returns:
        By module, one row per text, (r, w), in float64.
    """
    found = _read(view, texts, wanted, rows_per_pass, ranks, inputs)
    # A masked token has weight zero in attention, and zero times NaN is NaN: one text whose states
    # are not finite would break those of the others.
    if len(texts) > 1 and not all(bool(states.isfinite().all()) for states in found.values()):
        finite = [states.isfinite().all(1).tolist() for states in found.values()]
        broken = [row for row, sound in enumerate(zip(*finite, strict=True)) if not all(sound)]
        for row in broken:
            alone = _read(view, [texts[row]], wanted, rows_per_pass)
            for name, states in alone.items():
                found[name][row] = states[0]
    return found


def _read(
    view: ModelView,
    texts: Sequence[TokenizedText],
    wanted: Mapping[str, Side],
    rows_per_pass: int,
    ranks: OneProcess = ALONE,
    inputs: BlockInputs | None = None,
) -> dict[str, Tensor]:
    try:
        return _read_packed(view, texts, wanted, rows_per_pass, ranks, inputs)
    except NotPackableError:
        return _read_padded(view, texts, wanted, rows_per_pass, ranks)


def _read_packed(
    view: ModelView,
    texts: Sequence[TokenizedText],
    wanted: Mapping[str, Side],
    rows_per_pass: int,
    ranks: OneProcess,
    inputs: BlockInputs | None,
) -> dict[str, Tensor]:
    """Read hidden states from one packed row, without padding; shared prefixes run once."""
    names = [f"{block.name}." for block in view.blocks]
    top = max(names.index(name) for name in names for one in wanted if f"{one}.".startswith(name))
    pool, prefixes = prefill_prefixes(view, [text.ids[: text.lead] for text in texts], top, inputs)
    passes = length_sorted([len(text.ids) - text.lead for text in texts], rows_per_pass)

    def read(rows: Sequence[int]) -> dict[str, Tensor]:
        spans = [TextSpan(texts[row].ids[texts[row].lead :], prefixes[row]) for row in rows]
        packed = PackedRow.of(view, spans, pool)
        starts = packed.packing.starts
        last = starts + torch.tensor([len(span.ids) - 1 for span in spans], device=starts.device)
        captured = packed.read(view, wanted, top, inputs, tuple(rows))
        return {name: value[0, last].double() for name, value in captured.items()}

    return _dealt(passes, read, ranks)


def _read_padded(
    view: ModelView,
    texts: Sequence[TokenizedText],
    wanted: Mapping[str, Side],
    rows_per_pass: int,
    ranks: OneProcess,
) -> dict[str, Tensor]:
    """Read hidden states from a right-padded batch, one row per text."""
    device = view.embeddings.get_parameter("weight").device
    lengths = [len(text.ids) for text in texts]

    def read(rows: Sequence[int]) -> dict[str, Tensor]:
        ids, mask = pad([texts[row].ids for row in rows])
        with capture(view.model, wanted, stop=True) as captured:
            view.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        places = torch.arange(len(rows)), torch.tensor([lengths[row] - 1 for row in rows])
        return {name: value[places].double() for name, value in captured.items()}

    return _dealt(length_sorted(lengths, rows_per_pass), read, ranks)


def _dealt(
    passes: Iterable[Sequence[int]],
    read: Callable[[Sequence[int]], dict[str, Tensor]],
    ranks: OneProcess,
) -> dict[str, Tensor]:
    """Run passes, those of other processes there, and restore the order of the texts."""
    listed = list(passes)
    return _restore_order(ranks.deal(listed, read), listed)


def _restore_order(
    parts: Sequence[dict[str, Tensor]], passes: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Concatenate hidden states of several passes and restore the order of the texts."""
    order = [row for rows in passes for row in rows]
    places = torch.tensor(order).argsort()
    names = parts[0]
    joined = {name: torch.cat([part[name] for part in parts]) for name in names}
    return {name: rows[places.to(rows.device)] for name, rows in joined.items()}
