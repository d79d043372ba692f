"""Correction that a wrapper adds to its host editor's update, kept in the delta's history.

A wrapper may write more than its host's update: a correction that restrains the total of many
edits. Both the wrapper and a host that uses its own earlier updates must separate the two, so the
correction is stored in the delta's history.
"""

from dataclasses import replace

from torch import Tensor

from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate

#: Prefix of the history tensors of a correction.
RESTRAINT = "restraint/"


def with_correction(shaped: Delta, found: Delta) -> Delta:
    """Store the correction, written update minus the host's update, in a delta's history.

    Args:
        shaped: The delta to be written.
        found: The host's delta; updates that were passed on unchanged have no correction.
    """
    history = dict(shaped.history)
    for name, update in found.weights.items():
        if (written := shaped.weights[name]) is not update:
            parts = _update_difference(update, written).tensors().items()
            history |= {f"{RESTRAINT}{name}/{part}": value for part, value in parts}
    return replace(shaped, history=history)


def _update_difference(update: WeightUpdate, written: WeightUpdate) -> WeightUpdate:
    if isinstance(update, LowRank) and isinstance(written, LowRank):
        # Copies: two tensors that share their memory cannot be saved as one file.
        rank = update.rank
        return LowRank(written.left[:, rank:].clone(), written.right[rank:].clone())
    return Dense((written.dense() - update.dense()).float())


def correction_of(delta: Delta, name: str) -> Tensor | None:
    """Return the wrapper's correction of a matrix, without the host's update, in float64.

    Args:
        delta: A committed delta.
        name: Parameter name.

    Returns:
        The correction; ``None`` if there is none.
    """
    left, right, value = (
        delta.history.get(f"{RESTRAINT}{name}/{part}") for part in ("left", "right", "value")
    )
    if value is not None:
        return value.double()
    return None if left is None or right is None else left.double() @ right.double()


def host_update(delta: Delta, name: str) -> Tensor:
    """Return the host editor's update of a matrix, without the correction, in float64.

    Args:
        delta: A committed delta.
        name: Parameter name.
    """
    written, correction = delta.weights[name].dense(), correction_of(delta, name)
    return written if correction is None else written - correction.to(written.device)
