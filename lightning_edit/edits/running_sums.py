"""Running sums over the edits in force, for editors with a history (such as Σ K Kᵀ)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.in_force import HistoryChange


class RunningSums:
    """Running sums of tensors over the deltas in force, exact after any commits and undos.

    After an undo the sums are recomputed from the other deltas, in their order, on the next read:
    they are bit-identical to sums without the undone edit.

    Args:
        addends: Returns what a delta adds to each named sum.
    """

    def __init__(self, addends: Callable[[Delta], Mapping[str, Tensor]]) -> None:
        self._addends = addends
        self.in_force: Sequence[Delta] = ()
        self._sums: dict[str, Tensor] = {}
        self._stale = False

    def follow(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the list of edits in force.

        A commit adds its part, at a cost that does not grow with the list. After any other change
        the sums are added up again from the list, when somebody reads them; those that a checkpoint
        has restored stay.

        Args:
            in_force: The list, a live view.
            change: What changed.
        """
        self.in_force = in_force
        if change.kind == "appended" and not self._stale:
            for delta in change.deltas:
                self._sums = self._with_delta(self._sums, delta)
        elif change.kind != "restored":
            self._stale = True

    def get(self, name: str) -> Tensor | None:
        """Return a named sum; ``None`` if nothing was added to it."""
        self._recompute_if_stale()
        return self._sums.get(name)

    def state(self) -> dict[str, Tensor]:
        """Return the checkpoint state: all sums."""
        self._recompute_if_stale()
        return dict(self._sums)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the sums of a checkpoint; the list of edits follows."""
        self._sums, self._stale = dict(state), False

    def summed(self, deltas: Iterable[Delta]) -> dict[str, Tensor]:
        """Compute the sums over given deltas; bit-identical to :meth:`state` for those in force."""
        sums: dict[str, Tensor] = {}
        for delta in deltas:
            sums = self._with_delta(sums, delta)
        return sums

    def _recompute_if_stale(self) -> None:
        if self._stale:
            self._stale, self._sums = False, self.summed(self.in_force)

    def _with_delta(self, sums: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
        # Not in place: a checkpoint, or the delta itself, may hold the tensor.
        found = dict(sums)
        for name, value in self._addends(delta).items():
            before = found.get(name)
            found[name] = value if before is None else before + value.to(before.device)
        return found
