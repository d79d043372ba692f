"""How much of a committed update is a restraint, and not the update that its editor found.

A wrapper may write more than its host's update: what holds back the total of many edits. Both the
wrapper and a host that looks back at its own updates have to tell the two apart, so the restraint
stands in the delta's history.
"""

from dataclasses import replace

from torch import Tensor

from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate

#: What the names of restraints begin with.
RESTRAINT = "restraint/"


def with_correction(shaped: Delta, found: Delta) -> Delta:
    """Note in a delta's history what it has beside the host's updates.

    Args:
        shaped: What will be written.
        found: What the host found; updates that were passed on as they are have no restraint.
    """
    history = dict(shaped.history)
    for name, update in found.weights.items():
        if (written := shaped.weights[name]) is not update:
            parts = _beyond(update, written).tensors().items()
            history |= {f"{RESTRAINT}{name}/{part}": value for part, value in parts}
    return replace(shaped, history=history)


def _beyond(update: WeightUpdate, written: WeightUpdate) -> WeightUpdate:
    if isinstance(update, LowRank) and isinstance(written, LowRank):
        # Copies: two tensors that share their memory cannot be saved as one file.
        rank = update.rank
        return LowRank(written.left[:, rank:].clone(), written.right[rank:].clone())
    return Dense((written.dense() - update.dense()).float())


def correction_of(delta: Delta, name: str) -> Tensor | None:
    """Return what a delta adds to a matrix beside the host's update, in float64.

    Args:
        delta: A delta as it was written.
        name: The parameter.

    Returns:
        ``None`` where nothing was added.
    """
    left, right, value = (
        delta.history.get(f"{RESTRAINT}{name}/{part}") for part in ("left", "right", "value")
    )
    if value is not None:
        return value.double()
    return None if left is None or right is None else left.double() @ right.double()


def host_update(delta: Delta, name: str) -> Tensor:
    """Return the host's update of a matrix, in float64.

    Args:
        delta: A delta as it was written.
        name: The parameter.
    """
    written, restraint = delta.weights[name].dense(), correction_of(delta, name)
    return written if restraint is None else written - restraint.to(written.device)
