"""Journal of a run on disk: append-only, hash-chained, one line per operation, crash-safe.

Every line carries a hash over itself and the line before. A last line that was cut off by a kill is
dropped; any other line with a wrong hash is an error. Nothing here imports torch, so that ``undo``
starts fast.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.edits.entries import Entry, require_file
from lightning_edit.edits.journal_index import JournalIndex
from lightning_edit.exceptions import LedgerError
from lightning_edit.storage.atomic import write_error
from lightning_edit.storage.jsonl import append_synced, keep_first

SCHEMA = 1
_FIRST_HASH = "0" * 64


def _chain_hash(previous: str, line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()


class Journal:
    """Append-only journal of the commits and undos of one run.

    Args:
        directory: Folder of ``journal.jsonl`` and the delta files; created if missing.
        ranks: The processes that write the same lines: the first one into the file, the others
            follow it in memory.

    Raises:
        LedgerError: If a line other than a cut-off last one is damaged.
    """

    def __init__(self, directory: Path, ranks: OneProcess = ALONE) -> None:
        self.directory = directory
        self.ranks = ranks
        self.path = directory / "journal.jsonl"
        self.opening: Mapping[str, Any] | None = None
        self._index = JournalIndex(self._requests)
        self._head = _FIRST_HASH
        self._file_size = 0
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for number, piece in enumerate(file, start=1):
                self._file_size += len(piece)
                if not piece.endswith(b"\n"):
                    return  # cut off by a kill
                try:
                    line = json.loads(piece)
                    chain = line.pop("chain")
                except (ValueError, KeyError, TypeError, AttributeError):
                    line, chain = {}, ""
                if chain != _chain_hash(self._head, line):
                    raise LedgerError(
                        f"{self.path}, line {number}: the journal was changed or damaged after it "
                        "was written; restore the file, or start the run again in a new folder"
                    )
                self._add({**line, "chain": chain}, len(piece))

    def _add(self, chained: Mapping[str, Any], size: int) -> None:
        """Take in a line that is on disk; what it holds of requests stays there."""
        if self.opening is None:
            self.opening = chained
        self._head = str(chained["chain"])
        self._index.add(chained, size)

    def _line(self, begin: int) -> dict[str, Any]:
        """Read a line again."""
        with self.path.open("rb") as file:
            file.seek(begin)
            piece = file.readline()
        try:
            line = json.loads(piece)
        except ValueError:
            line = None
        return line if isinstance(line, dict) else {}

    def _requests(self, seq: int) -> tuple[Mapping[str, Any], ...]:
        line = self._line(self._index.begin_of(seq))
        if (line.get("op"), line.get("seq")) != ("commit", seq):
            raise LedgerError(
                f"{self.path} was changed since it was read: commit {seq} is not where it was; "
                "restore the run folder as a whole"
            )
        return tuple(line["requests"])

    @property
    def head(self) -> str:
        """Hash of the last line, which covers the whole journal."""
        return self._head

    def __len__(self) -> int:
        return len(self._index)

    def head_at(self, lines: int) -> str | None:
        """Return the hash over the first lines of the journal, or ``None`` if it has fewer.

        Args:
            lines: Their number.
        """
        if lines == len(self):
            return self._head
        if not 0 <= lines < len(self):
            return None
        return str(self._line(self._index.begins[lines - 1]).get("chain")) if lines else _FIRST_HASH

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line and sync it to disk.

        Args:
            line: Plain containers.

        Raises:
            LedgerWriteError: If the disk write fails; the journal is unchanged.
        """
        chained = {**line, "chain": _chain_hash(self.head, line)}
        data = (json.dumps(chained, ensure_ascii=False) + "\n").encode()
        self.ranks.first(lambda: self._append(data))
        self._add(chained, len(data))
        self._file_size = self._index.size

    def _append(self, data: bytes) -> None:
        self.require_unchanged()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # A partial last line of an earlier kill or failed write is overwritten.
            append_synced(self.path, self._index.size, data)
        except OSError as error:
            self._drop_tail()
            raise write_error(error, self.path, "Every earlier edit is safe.") from error

    def require_unchanged(self) -> None:
        """Check that no other process has written the journal since it was read.

        Raises:
            LedgerError: If one has.
        """
        if self._file_size != (self.path.stat().st_size if self.path.exists() else 0):
            raise LedgerError(
                f"{self.path} was changed by another process meanwhile; use a run folder with one "
                "process at a time, and start this one again"
            )

    def require_files(self, entries: Sequence[Entry]) -> None:
        """Check that the delta files of commits are there and are what the journal recorded.

        Args:
            entries: The commits.

        Raises:
            LedgerError: If one is missing, was changed, or lies elsewhere.
        """
        for entry in entries:
            require_file(self.directory, entry)

    def require_there(self, entries: Sequence[Entry]) -> None:
        """Check that the delta files of commits are there, in one look at the folder.

        Args:
            entries: The commits.

        Raises:
            LedgerError: If one is missing, or is no plain file.
        """
        if not entries:
            return
        with os.scandir(self.directory) as listed:
            there = {one.name for one in listed if one.is_file(follow_symlinks=False)}
        for entry in entries:
            if entry.file not in there:
                require_file(self.directory, entry)  # says what is wrong

    def _drop_tail(self) -> None:
        """Truncate a partial line whose write failed after it had reached the file."""
        with suppress(OSError):
            os.truncate(self.path, self._index.size)
            self._file_size = self._index.size

    def open(self, **facts: Any) -> None:
        """Write the opening line, or check that it matches.

        Args:
            **facts: Facts that identify the run: model hash, editor.

        Raises:
            LedgerError: If the journal belongs to another model or editor.
        """
        if self.opening is None:
            self.append({"op": "open", "schema": SCHEMA, **facts})
            return
        if self.opening.get("schema") != SCHEMA:
            raise LedgerError(
                f"{self.path}: schema {self.opening.get('schema')}, expected {SCHEMA}; "
                "it was written by another version of lightning-edit"
            )
        for key, value in facts.items():
            if self.opening.get(key) != value:
                raise LedgerError(
                    f"{self.path}: {key} is {value!r}, but the journal was opened with "
                    f"{self.opening.get(key)!r}; continue with the same one or start a new run"
                )

    def commit(
        self, ids: Sequence[str], file: str, sha256: str, requests: Sequence[Mapping[str, Any]]
    ) -> Entry:
        """Record a commit whose delta file is already on disk."""
        record = {"ids": list(ids), "file": file, "sha256": sha256, "requests": list(requests)}
        self.append({"op": "commit", "seq": self.next_seq, **record})
        return self._index.commits[-1]

    def undo(self, seqs: Sequence[int], by: str = "run") -> None:
        """Record the undo of commits.

        Args:
            seqs: Their sequence numbers.
            by: ``run`` for the edit loop itself, ``user`` for a later undo by the user.
        """
        self.append({"op": "undo", "of": list(seqs), "by": by})

    def redo(self, seqs: Sequence[int], by: str = "run") -> None:
        """Record a redo: undone commits are in force again, at their old positions.

        Args:
            seqs: Their numbers.
            by: ``run`` for the edit loop itself, ``user`` for a later command.
        """
        self.append({"op": "redo", "of": list(seqs), "by": by})

    @property
    def next_seq(self) -> int:
        """Sequence number of the next commit."""
        return 1 + len(self._index.commits)

    def active(self, lines: int | None = None) -> list[Entry]:
        """Return the commits that stand, in order.

        Args:
            lines: Those that stand after so many lines of the journal; ``None``: after all.
        """
        gone = self._index.undone_after(lines)
        return [one for one in self._index.commits_in(lines) if one.seq not in gone]

    def undone(self, by: str | None = None) -> list[Entry]:
        """Return the undone commits, in order.

        Args:
            by: Only those that it undid, such as ``user``; ``None``: all.
        """
        asked = self._index.undone_after()
        return [one for one in self.commits() if one.seq in asked and by in (None, asked[one.seq])]

    def commits(self) -> list[Entry]:
        """Return every commit, including undone ones, in order."""
        return list(self._index.commits)

    def require_end(self, lines: int, head: str) -> None:
        """Check that the journal still holds what it held when its run ended.

        Args:
            lines: Its lines then; later undos and edits have added some.
            head: Hash of the last of them.

        Raises:
            LedgerError: If lines are missing, or are others.
        """
        if len(self) < lines or (lines and self.head_at(lines) != head):
            raise LedgerError(
                f"{self.path} has {len(self)} lines, but not the {lines} with which its run ended, "
                "so edits are missing; restore the run folder as a whole"
            )

    def check_truncation(self, lines: int, head: str | None = None, covered: int = 0) -> None:
        """Check that the journal can be truncated, and that the delta files then needed are there.

        Nothing is written.

        Args:
            lines: Number of lines to keep.
            head: Hash of the last line to keep, as a checkpoint recorded it.
            covered: Highest number of a commit whose sum a verified snapshot holds: files up to it
                must be there, but are not read.

        Raises:
            LedgerError: If there are fewer lines, or other ones; if the user has undone edits
                since; or if a delta file is missing or was changed.
        """
        self.check_lines(lines)
        if head is not None and self.head_at(lines) != head:
            raise LedgerError(
                f"{self.directory} and the checkpoint belong to different runs; nothing was "
                "changed. Resume with the checkpoint in the run's own folder"
            )
        # Those undone by then are read by a later redo alone.
        active = self.active(lines)
        self.require_there([one for one in active if one.seq <= covered])
        self.require_files([one for one in active if one.seq > covered])

    def require_only(self, ids: Collection[str], lines: int) -> None:
        """Check that nobody has written other edits behind a checkpoint, which a resume would lose.

        Args:
            ids: Requests of the run.
            lines: Lines of the journal that the checkpoint knows.

        Raises:
            LedgerError: If there is a commit of another request.
        """
        others = [
            name
            for entry in self._index.commits[len(self._index.commits_in(lines)) :]
            for name in entry.ids
            if name not in ids
        ]
        if others:
            raise LedgerError(
                f"{self.path}: {', '.join(others[:8])} {'was' if len(others) == 1 else 'were'} "
                "written to this run after its last checkpoint, and resuming would lose that; go "
                "on with EditedModel.open on this folder, or start a new run"
            )

    def check_lines(self, lines: int) -> None:
        """Check that the journal can be truncated, without a look at the delta files.

        Args:
            lines: Number of lines to keep.

        Raises:
            LedgerError: If there are fewer, or if the user has undone edits since.
        """
        if lines > len(self):
            raise LedgerError(
                f"{self.path} has {len(self)} lines but the checkpoint was taken at "
                f"{lines}; it is older than the checkpoint, so restore the whole run folder"
            )
        # An undo and its redo leave nothing that a repeat of the run would overwrite.
        if set(self._index.undone_after()) != set(self._index.undone_after(lines, with_run=True)):
            raise LedgerError(
                f"{self.path}: edits were undone by hand after the last checkpoint; "
                "resuming would write them again, so start a new run"
            )

    def truncate(self, lines: int) -> None:
        """Truncate the journal to an earlier state, so that later operations are redone.

        Args:
            lines: Number of lines to keep.

        Raises:
            LedgerError: If there are fewer, or if the user has undone edits since.
        """
        self.check_lines(lines)
        head = self.head_at(lines)
        assert head is not None  # there are as many lines
        size = self._index.size if lines == len(self) else self._index.begins[lines]
        self.ranks.first(lambda: self._cut(size))
        self._index.truncate(lines)
        self._head, self._file_size = head, size
        self.opening = self.opening if lines else None

    def _cut(self, size: int) -> None:
        try:
            keep_first(self.path, size)
        except OSError as error:
            raise write_error(error, self.path, "Every earlier edit is safe.") from error
