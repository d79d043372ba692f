"""Sums over the edits in force, for editors that look back at what they have done."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_edit.delta import Delta


class Totals:
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

    def add(self, delta: Delta) -> None:
        """Take an edit in."""
        self._settle()
        self._kept.append(delta)
        self._accumulate(delta)

    def note(self, delta: Delta) -> None:
        """Note that an edit is in force which the sums contain already."""
        self._kept.append(delta)

    def remove(self, delta: Delta) -> None:
        """Take an edit out; one that is not in force changes nothing."""
        left = [kept for kept in self._kept if kept is not delta]
        self._stale = self._stale or len(left) < len(self._kept)
        self._kept = left

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

    def _settle(self) -> None:
        if self._stale:
            self._stale, self._sums = False, {}
            for delta in self._kept:
                self._accumulate(delta)

    def _accumulate(self, delta: Delta) -> None:
        for name, value in self._addends(delta).items():
            before = self._sums.get(name)
            self._sums[name] = value if before is None else before + value.to(before.device)
