"""Live list of the edits in force (committed, not undone), for editors with a history.

Deltas of a run on disk are loaded when they are read, so memory does not grow with a stream.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.entries import Entry, require_file

#: Deltas of a run on disk that stay in memory: as many as a key history looks back at.
_CACHED = 64
#: Deltas that act at run time and hold no more values than this stay in memory: what acts is built
#: from the whole list at every commit.
_SMALL = 1 << 18


@dataclass(frozen=True)
class HistoryChange:
    """How the list of edits in force has just changed.

    Args:
        kind: ``appended``: a commit, now the last of the list. ``removed``: an undo. ``inserted``:
            a redo, at its old position. ``replayed``: the whole list, read from a journal.
            ``restored``: likewise, but a checkpoint has restored the history already.
        deltas: What was appended, removed or inserted, in the order of the commits.
        position: Of an inserted delta, its place in the list.
    """

    kind: Literal["appended", "removed", "inserted", "replayed", "restored"]
    deltas: tuple[Delta, ...] = ()
    position: int = 0


class EditsInForce(Sequence[Delta]):
    """Deltas in force, in the order of their commits; a live view that follows its ledger.

    Args:
        load: Reads the delta of a journal entry; ``None`` keeps every delta in memory.
    """

    def __init__(self, load: Callable[[Entry], Delta] | None = None) -> None:
        self._load = load
        self.entries: list[Entry] = []
        self._deltas: OrderedDict[int, Delta] = OrderedDict()
        self._small: dict[int, Delta] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Delta: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delta]: ...
    def __getitem__(self, index: int | slice) -> Delta | list[Delta]:
        if isinstance(index, slice):
            return [self.delta(entry) for entry in self.entries[index]]
        return self.delta(self.entries[index])

    def __iter__(self) -> Iterator[Delta]:
        for entry in list(self.entries):
            yield self.delta(entry)

    def delta(self, entry: Entry) -> Delta:
        """Return the delta of one commit in force, from memory or disk.

        Args:
            entry: The commit.

        Raises:
            LedgerError: If its file is missing or was changed.
        """
        found = self._small.get(entry.seq) or self._deltas.get(entry.seq)
        if found is None:
            assert self._load is not None  # without a file every delta stays in memory
            found = self._load(entry)
            self.keep(entry, found)
        return found

    def append(self, entry: Entry, delta: Delta) -> None:
        """Add a commit at the end.

        Args:
            entry: The commit.
            delta: Its delta.
        """
        self.entries.append(entry)
        self.keep(entry, delta)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add commits at the end, whose deltas are read from disk when somebody asks.

        Args:
            entries: The commits.
        """
        self.entries.extend(entries)

    def insert(self, entry: Entry, delta: Delta) -> int:
        """Put a commit back where it was.

        Args:
            entry: The commit.
            delta: Its delta.

        Returns:
            Its place in the list.
        """
        place = bisect_left(self.entries, entry.seq, key=lambda other: other.seq)
        self.entries.insert(place, entry)
        self.keep(entry, delta)
        return place

    def remove(self, seqs: set[int]) -> None:
        """Take commits out.

        Args:
            seqs: Their numbers.
        """
        self.entries = [entry for entry in self.entries if entry.seq not in seqs]
        for seq in seqs:
            self._deltas.pop(seq, None)
            self._small.pop(seq, None)

    def of(self, seqs: set[int]) -> list[Entry]:
        """Return the commits of some numbers, in order; the cost does not grow with the list.

        Args:
            seqs: Numbers of commits in force.
        """
        places = (
            bisect_left(self.entries, seq, key=lambda other: other.seq) for seq in sorted(seqs)
        )
        return [self.entries[place] for place in places]

    def keep(self, entry: Entry, delta: Delta) -> None:
        """Keep a delta in memory: all of a ledger in memory, else the newest few.

        Args:
            entry: Its commit.
            delta: The delta.
        """
        if (delta.state or delta.prompts) and delta.numel() <= _SMALL:
            self._small[entry.seq] = delta
            return
        self._deltas[entry.seq] = delta
        self._deltas.move_to_end(entry.seq)
        if self._load is not None and len(self._deltas) > _CACHED:
            self._deltas.popitem(last=False)


def load_entry(directory: Path, entry: Entry, device: str = "cpu") -> Delta:
    """Read a commit's delta and check that nobody changed it.

    Args:
        directory: The journal's folder.
        entry: The commit.
        device: Where the tensors go.

    Returns:
        The delta.

    Raises:
        LedgerError: If the file is missing, lies elsewhere, or its hash differs.
    """
    return Delta.load(require_file(directory, entry), device)
