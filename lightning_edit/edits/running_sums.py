"""Sums over the edits in force, for editors that look back at what they have done."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_edit.edits.delta import Delta


class RunningSums:
    """Named sums over the deltas in force, whatever was committed and undone before.

    After an edit is forgotten the sums are added up again from the others, in their order, when
    somebody looks: they have the bits they would have had without it.

    Args:
        addends: What a delta adds to which sum.
    """

    def __init__(self, addends: Callable[[Delta], Mapping[str, Tensor]]) -> None:
        self._addends = addends
        self._kept: list[Delta] = []
        self._sums: dict[str, Tensor] = {}
        self._stale = False

    @property
    def in_force(self) -> list[Delta]:
        """The deltas that the sums are made of, in the order of their commits."""
        return list(self._kept)

    def add(self, delta: Delta) -> None:
        """Take an edit in."""
        self._settle()
        self._kept.append(delta)
        self._sums = self._plus(self._sums, delta)

    def note(self, delta: Delta) -> None:
        """Note that an edit is in force which the sums contain already."""
        self._kept.append(delta)

    def remove(self, delta: Delta) -> bool:
        """Take an edit out; one that is not in force (an earlier binding's) changes nothing.

        Returns:
            Whether it was in.
        """
        left = [kept for kept in self._kept if kept is not delta]
        found = len(left) < len(self._kept)
        self._kept, self._stale = left, self._stale or found
        return found

    def get(self, name: str) -> Tensor | None:
        """Return a sum; ``None`` while nothing was added to it."""
        self._settle()
        return self._sums.get(name)

    def state(self) -> dict[str, Tensor]:
        """Return all sums, for a checkpoint."""
        self._settle()
        return dict(self._sums)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the sums of a checkpoint; the edits themselves are noted one by one."""
        self._sums, self._kept, self._stale = dict(state), [], False

    def summed(self, deltas: Iterable[Delta]) -> dict[str, Tensor]:
        """Return the sums over some deltas; over those in force, with the bits of :meth:`state`."""
        sums: dict[str, Tensor] = {}
        for delta in deltas:
            sums = self._plus(sums, delta)
        return sums

    def _settle(self) -> None:
        if self._stale:
            self._stale, self._sums = False, self.summed(self._kept)

    def _plus(self, sums: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
        # Not in place: a checkpoint, or the delta itself, may hold the tensor.
        found = dict(sums)
        for name, value in self._addends(delta).items():
            before = found.get(name)
            found[name] = value if before is None else before + value.to(before.device)
        return found
