"""Running sums over the edits in force, for editors with a history (such as Σ K Kᵀ)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_edit.edits.delta import Delta


class RunningSums:
    """Running sums of tensors over the deltas in force, exact after any commits and undos.

    After an undo the sums are recomputed from the other deltas, in their order, on the next read:
    they are bit-identical to sums without the undone edit.

    Args:
        addends: Returns what a delta adds to each named sum.
    """

    def __init__(self, addends: Callable[[Delta], Mapping[str, Tensor]]) -> None:
        self._addends = addends
        self._in_force: list[Delta] = []
        self._sums: dict[str, Tensor] = {}
        self._stale = False

    @property
    def in_force(self) -> list[Delta]:
        """Deltas in the sums, in the order of their commits."""
        return list(self._in_force)

    def add(self, delta: Delta) -> None:
        """Add a committed delta to the sums."""
        self._recompute_if_stale()
        self._in_force.append(delta)
        self._sums = self._with_delta(self._sums, delta)

    def note(self, delta: Delta) -> None:
        """Register a delta in force that the sums already contain, after a checkpoint."""
        self._in_force.append(delta)

    def remove(self, delta: Delta) -> bool:
        """Remove an undone delta; one that is not in force (of an earlier binding) is ignored.

        Returns:
            Whether it was in force.
        """
        left = [kept for kept in self._in_force if kept is not delta]
        found = len(left) < len(self._in_force)
        self._in_force, self._stale = left, self._stale or found
        return found

    def get(self, name: str) -> Tensor | None:
        """Return a named sum; ``None`` if nothing was added to it."""
        self._recompute_if_stale()
        return self._sums.get(name)

    def state(self) -> dict[str, Tensor]:
        """Return the checkpoint state: all sums."""
        self._recompute_if_stale()
        return dict(self._sums)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the sums of a checkpoint; the deltas are registered by :meth:`note`."""
        self._sums, self._in_force, self._stale = dict(state), [], False

    def summed(self, deltas: Iterable[Delta]) -> dict[str, Tensor]:
        """Compute the sums over given deltas; bit-identical to :meth:`state` for those in force."""
        sums: dict[str, Tensor] = {}
        for delta in deltas:
            sums = self._with_delta(sums, delta)
        return sums

    def _recompute_if_stale(self) -> None:
        if self._stale:
            self._stale, self._sums = False, self.summed(self._in_force)

    def _with_delta(self, sums: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
        # Not in place: a checkpoint, or the delta itself, may hold the tensor.
        found = dict(sums)
        for name, value in self._addends(delta).items():
            before = found.get(name)
            found[name] = value if before is None else before + value.to(before.device)
        return found
