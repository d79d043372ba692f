"""Editing a batch one request at a time, with the low-rank updates concatenated into one delta."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from lightning_edit.editors.base import Editor
from lightning_edit.edits.columns import joined, renumbered
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.types import EditBatch

#: Entries of a locate-then-edit ``info`` with one value per request.
PER_REQUEST = (
    "loss", "steps", "site_distance", "nll_before", "nll_searched", "nll_edited", "rivals",
)  # fmt: skip


def edit_one_by_one(
    editor: Editor, batch: EditBatch, edit: Callable[[EditBatch], Delta] | None = None
) -> Delta:
    """Edit sequentially within a batch: each request sees the updates of the ones before it.

    Args:
        editor: An editor that computes low-rank updates of one request at a time.
        batch: The requests.
        edit: Computes the update of one request; ``None``: the editor's own ``edit``.

    Returns:
        One delta, the sum of all updates.
    """
    deltas: list[Delta] = []
    with ExitStack() as stack:
        for part in batch.split():
            if deltas:
                stack.enter_context(deltas[-1].applied(editor.language_model))
            deltas.append((edit or editor.edit)(part))
    weights: dict[str, LowRank] = {}
    for delta in deltas:
        for name, update in delta.weights.items():
            if isinstance(update, LowRank):
                weights[name] = concat_low_rank(weights.get(name), update)
    infos = [delta.info for delta in deltas]
    info = {key: [one for each in infos for one in each[key]] for key in PER_REQUEST}
    columns = joined(*(renumbered(delta.columns, [n]) for n, delta in enumerate(deltas)))
    columns = {
        name: owners for name, owners in columns.items() if len(owners) == weights[name].rank
    }
    return Delta(batch.ids, weights, info=dict(infos[0]) | info, columns=columns)


def concat_low_rank(first: LowRank | None, second: LowRank) -> LowRank:
    """Return the sum of two low-rank updates by concatenating their factors.

    Args:
        first: An update; ``None``: zero.
        second: Another update of the same weight.
    """
    if first is None:
        return second
    return LowRank(
        torch.cat([first.left, second.left], dim=1), torch.cat([first.right, second.right])
    )
