"""Index of a journal: where its lines lie, and its commits and undos, without texts of requests.

A journal of a long stream is read once; what stays in memory of a commit is its name, its hash and
two numbers. Nothing here imports torch.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from lightning_edit.edits.entries import Entry, Requests


class JournalIndex:
    """What is kept in memory of the lines of a journal.

    Args:
        read: Reads the requests of a commit from the file, by its number.
    """

    def __init__(self, read: Callable[[int], Requests]) -> None:
        self._read = read
        #: Bytes of the file up to the end of the last line.
        self.size = 0
        #: Where each line begins.
        self.begins = array("Q")
        self.commits: list[Entry] = []
        self._commit_lines = array("Q")
        #: Undos and redos: line, operation, numbers of commits, who did it.
        self._changes: list[tuple[int, str, tuple[int, ...], str]] = []

    def __len__(self) -> int:
        return len(self.begins)

    def add(self, line: Mapping[str, Any], size: int) -> None:
        """Add a line.

        Args:
            line: Its content.
            size: Its bytes.
        """
        number = len(self.begins)
        self.begins.append(self.size)
        self.size += size
        if line["op"] == "commit":
            name = (line["seq"], tuple(line["ids"]), line["file"], line["sha256"])
            self.commits.append(Entry(*name, self._read))
            self._commit_lines.append(number)
        elif line["op"] in ("undo", "redo"):
            by = str(line.get("by", "run"))
            self._changes.append((number, line["op"], tuple(line["of"]), by))

    def begin_of(self, seq: int) -> int:
        """Return where the line of a commit begins.

        Args:
            seq: The number of the commit.
        """
        return self.begins[self._commit_lines[seq - 1]]

    def commits_in(self, lines: int | None = None) -> list[Entry]:
        """Return the commits of the first lines, undone ones too.

        Args:
            lines: Number of lines; ``None``: all.
        """
        if lines is None:
            return self.commits
        return self.commits[: bisect_left(self._commit_lines, lines)]

    def undone_after(self, lines: int | None = None, with_run: bool = False) -> dict[int, str]:
        """Return which commits are undone after some lines, and who undid them.

        Args:
            lines: Number of lines; ``None``: all.
            with_run: Whether later lines count too, unless a user wrote them by hand.
        """
        undone: dict[int, str] = {}
        for number, operation, seqs, by in self._changes:
            if lines is not None and number >= lines and (not with_run or by == "user"):
                continue
            if operation == "undo":
                undone |= dict.fromkeys(seqs, by)
            else:
                for seq in seqs:
                    undone.pop(seq, None)
        return undone

    def truncate(self, lines: int) -> None:
        """Forget the lines behind the first ones.

        Args:
            lines: Number of lines that stay.
        """
        if lines < len(self.begins):
            self.size = self.begins[lines]
        commits = bisect_left(self._commit_lines, lines)
        del self.begins[lines:], self.commits[commits:], self._commit_lines[commits:]
        self._changes = [change for change in self._changes if change[0] < lines]
