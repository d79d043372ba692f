"""The processes of a run, where there is one. Nothing here imports torch.

Code that several processes run together takes a :class:`OneProcess`; with several it gets a
:class:`~lightning_edit.distributed.ranks.Ranks`, which has the same verbs.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


class OneProcess:
    """A run in one process: its work is its own, and there is nobody to agree with."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run (rank 0)."""
        return self.rank == 0

    def first(self, work: Callable[[], _Value]) -> _Value:
        """Do something on rank 0 alone, such as a write to disk; all ranks wait for it.

        Args:
            work: What is done. Its error is raised on every rank.

        Returns:
            What it returned, on every rank: plain containers or tensors.
        """
        return work()

    def same(self, value: _Value) -> _Value:
        """Return rank 0's value, on every rank (broadcast).

        Args:
            value: This rank's value.
        """
        return value

    def deal(self, items: Iterable[_Item], work: Callable[[_Item], _Value]) -> list[_Value]:
        """Do the work of some items, each on one rank, and gather the results (all-gather).

        Args:
            items: All items, the same on every rank, such as forward passes.
            work: Work of one item. It must not wait for other ranks. Its error is raised on every
                rank; of several, that of the first item.

        Returns:
            One result per item, in order, on every rank; tensors of an accelerator lie on the
            rank's own.
        """
        return [work(item) for item in items]

    def require_same(self, what: str, checksums: Mapping[str, str]) -> None:
        """Check that all ranks have computed the same.

        Args:
            what: What was computed, for the message.
            checksums: Checksum of each part, by name.

        Raises:
            RanksDifferError: If a rank has another part.
        """

    def wait(self) -> None:
        """Wait until all ranks are here (barrier)."""

    def apart(self) -> AbstractContextManager[None]:
        """Return a context in which torch.distributed shows this process as the only one.

        Work that every rank repeats must not be reduced over them: a torchmetrics metric in it
        would add the same states of all ranks.
        """
        return nullcontext()


#: For code that is not told otherwise.
ALONE = OneProcess()
