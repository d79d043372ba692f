"""Several updates as one."""

from contextlib import ExitStack

import torch

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.types import EditBatch


def one_after_another(editor: Editor, batch: EditBatch) -> Delta:
    """Write each request into the model that its predecessors changed.

    Args:
        editor: Finds low-rank updates of one request at a time.
        batch: Its requests.

    Returns:
        All updates as one.
    """
    deltas: list[Delta] = []
    with ExitStack() as stack:
        for part in batch.split():
            if deltas:
                stack.enter_context(deltas[-1].applied(editor.language_model))
            deltas.append(editor.edit(part))
    weights: dict[str, LowRank] = {}
    for delta in deltas:
        for name, update in delta.weights.items():
            if isinstance(update, LowRank):
                weights[name] = concat_low_rank(weights.get(name), update)
    infos = [delta.info for delta in deltas]
    info = {key: [one for each in infos for one in each[key]] for key in ("loss", "steps")}
    return Delta(batch.ids, weights, info=dict(infos[0]) | info)


def concat_low_rank(first: LowRank | None, second: LowRank) -> LowRank:
    """Return the sum of two low-rank updates, as one.

    Args:
        first: ``None`` for nothing.
        second: Another update of the same weight.
    """
    if first is None:
        return second
    return LowRank(
        torch.cat([first.left, second.left], dim=1), torch.cat([first.right, second.right])
    )
