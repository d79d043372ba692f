"""Sums of the edits in force, begun at a snapshot where there is one, for replay, undo and redo."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import EditedWeights
from lightning_edit.edits.entries import Entry
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.runs import marks
from lightning_edit.edits.snapshots import Snapshot, Snapshots
from lightning_edit.edits.totals import Totals

#: Commits between two snapshots.
SNAPSHOT_EVERY = 1000


class Summing:
    """Totals of weights over lists of commits, with the bits of a sum from the first commit.

    Args:
        weights: The weights of the model.
        journal: The journal, whose folder holds the snapshots; ``None``: there are none.
        every: Commits between two snapshots; 0: none is written.
    """

    def __init__(self, weights: EditedWeights, journal: Journal | None, every: int) -> None:
        self._weights = weights
        self._journal = journal
        self._every = 0 if journal is None else every
        self._snapshots = None if journal is None else Snapshots(journal, max(1, every))

    def base(self, entries: Sequence[Entry]) -> Snapshot | None:
        """Return the newest snapshot that sums up the first of some commits, verified.

        Args:
            entries: The commits, in order.
        """
        if self._snapshots is None or not entries:
            return None
        return self._snapshots.find(entries, lambda name: self._weights.device(name).type)

    def over(
        self,
        entries: Sequence[Entry],
        load: Callable[[Entry], Delta],
        base: Snapshot | None,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Sum up weights over commits.

        A long sum writes snapshots on its way (1, 2, 4 … intervals before its end), so that the
        next one is short.

        Args:
            entries: The commits, in order.
            load: Returns the delta of one of them; called in order, from the first behind ``base``.
            base: Result of :meth:`base` for them.
            names: The weights; ``None``: all that the deltas change.

        Returns:
            Totals in float64, by parameter name; a weight that no delta changes is absent.

        Raises:
            LedgerError: If a delta file is missing or was changed, or a weight was changed outside
                the ledger. Nothing but snapshots was written then.
        """
        begun = 0 if base is None else base.count
        places: set[int] = set()
        if self._snapshots is not None and self._snapshots.writable:
            places = marks(len(entries), begun, self._every)
        own = None if names is None else {*names, *(self._weights.touched if places else ())}
        if own is not None:  # a snapshot holds every weight
            self._weights.require_unchanged(own)
        totals = Totals(self._weights, None if base is None else base.totals, own)
        for count, entry in enumerate(entries[begun:], start=begun + 1):
            totals.add(load(entry))
            if self._snapshots is not None and count in places:
                self._snapshots.write(entries[:count], totals.values)
        wanted = totals.values.keys() if names is None else totals.values.keys() & set(names)
        return {name: totals.values[name] for name in sorted(wanted)}

    def committed(self, entries: Sequence[Entry]) -> None:
        """Write a snapshot if it is time for one; the journal holds the commit already.

        Args:
            entries: The commits in force.
        """
        # By the commit's number, so that a resumed run writes them at the same places.
        if self._snapshots is None or not self._every or entries[-1].seq % self._every:
            return
        if len(entries) < self._every:  # `single` has one edit in force
            return
        totals = {name: one.total for name, one in self._weights.touched.items()}
        if totals:
            self._snapshots.write(entries, totals)
            self._snapshots.tidy(entries)

    def tidy(self, entries: Sequence[Entry]) -> None:
        """Remove snapshots that are of no use after an undo or redo.

        Args:
            entries: The commits in force.
        """
        if self._snapshots is not None and self._every:
            self._snapshots.tidy(entries)

    def covered(self, lines: int) -> int:
        """Return up to which commit a snapshot, here verified, spares the delta files.

        Args:
            lines: Lines of the journal that will be replayed.

        Returns:
            Number of the commit; 0 without such a snapshot.
        """
        found = None if self._journal is None else self.base(self._journal.active(lines))
        return 0 if found is None else found.last

    def truncate(self, lines: int) -> None:
        """Truncate the journal, and remove the snapshots that were written later.

        Args:
            lines: Number of lines to keep.

        Raises:
            LedgerError: As :meth:`Journal.truncate`.
        """
        if self._journal is not None and self._snapshots is not None:
            self._journal.check_lines(lines)
            self._snapshots.forget_after(lines)
            self._journal.truncate(lines)
