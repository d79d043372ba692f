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
from lightning_edit.exceptions import LedgerError
from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.jsonl import append_synced, complete_lines

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
        self._lines: list[dict[str, Any]] = []
        self._valid_bytes = 0
        self._file_size = 0
        self._commits = 0
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        self._file_size = len(content)
        previous = _FIRST_HASH
        for number, piece in enumerate(complete_lines(content), start=1):
            try:
                line = json.loads(piece)
                chain = line.pop("chain")
            except (ValueError, KeyError, TypeError, AttributeError):
                line, chain = {}, ""
            if chain != _chain_hash(previous, line):
                raise LedgerError(
                    f"{self.path}, line {number}: the journal was changed or damaged after it was "
                    "written; restore the file, or start the run again in a new folder"
                )
            previous = chain
            self._lines.append({**line, "chain": chain})
            self._commits += line["op"] == "commit"
            self._valid_bytes += len(piece) + 1

    @property
    def head(self) -> str:
        """Hash of the last line, which covers the whole journal."""
        return str(self._lines[-1]["chain"]) if self._lines else _FIRST_HASH

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def opening(self) -> Mapping[str, Any] | None:
        """First line of the journal (model hash, editor), or ``None``."""
        return self._lines[0] if self._lines else None

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
        self._lines.append(chained)
        self._commits += line["op"] == "commit"
        self._valid_bytes += len(data)
        self._file_size = self._valid_bytes

    def _append(self, data: bytes) -> None:
        self.require_unchanged()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # A partial last line of an earlier kill or failed write is overwritten.
            append_synced(self.path, self._valid_bytes, data)
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

    def _drop_tail(self) -> None:
        """Truncate a partial line whose write failed after it had reached the file."""
        with suppress(OSError):
            os.truncate(self.path, self._valid_bytes)
            self._file_size = self._valid_bytes

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
        entry = Entry(self.next_seq, tuple(ids), file, sha256, tuple(requests))
        record = {"ids": list(ids), "file": file, "sha256": sha256, "requests": list(requests)}
        self.append({"op": "commit", "seq": entry.seq, **record})
        return entry

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
        return 1 + self._commits

    def active(self) -> list[Entry]:
        """Return the commits that stand, in order."""
        gone = _undone_seqs(self._lines)
        return [entry for entry in self.commits() if entry.seq not in gone]

    def undone(self, by: str | None = None) -> list[Entry]:
        """Return the undone commits, in order.

        Args:
            by: Only those that it undid, such as ``user``; ``None``: all.
        """
        asked: dict[int, str] = {}
        for line in self._lines:
            if line["op"] == "undo":
                asked |= dict.fromkeys(line["of"], str(line.get("by", "run")))
            elif line["op"] == "redo":
                asked = {seq: who for seq, who in asked.items() if seq not in line["of"]}
        return [e for e in self.commits() if e.seq in asked and by in (None, asked[e.seq])]

    def commits(self) -> list[Entry]:
        """Return every commit, including undone ones, in order."""
        return _commits(self._lines)

    def require_end(self, lines: int, head: str) -> None:
        """Check that the journal still holds what it held when its run ended.

        Args:
            lines: Its lines then; later undos and edits have added some.
            head: Hash of the last of them.

        Raises:
            LedgerError: If lines are missing, or are others.
        """
        if len(self) < lines or (lines and self._lines[lines - 1]["chain"] != head):
            raise LedgerError(
                f"{self.path} has {len(self)} lines, but not the {lines} with which its run ended, "
                "so edits are missing; restore the run folder as a whole"
            )

    def check_truncation(self, lines: int, head: str | None = None) -> None:
        """Check that the journal can be truncated, and that the delta files then needed are there.

        Nothing is written.

        Args:
            lines: Number of lines to keep.
            head: Hash of the last line to keep, as a checkpoint recorded it.

        Raises:
            LedgerError: If there are fewer lines, or other ones; if the user has undone edits
                since; or if a delta file is missing or was changed.
        """
        self._check_lines(lines)
        kept = self._lines[:lines]
        found = str(kept[-1]["chain"]) if kept else _FIRST_HASH
        if head is not None and found != head:
            raise LedgerError(
                f"{self.directory} and the checkpoint belong to different runs; nothing was "
                "changed. Resume with the checkpoint in the run's own folder"
            )
        # Those undone by then are read by a later redo alone.
        gone = _undone_seqs(kept)
        self.require_files([one for one in _commits(kept) if one.seq not in gone])

    def require_only(self, ids: Collection[str], lines: int) -> None:
        """Check that nobody has written other edits behind a checkpoint, which a resume would lose.

        Args:
            ids: Requests of the run.
            lines: Lines of the journal that the checkpoint knows.

        Raises:
            LedgerError: If there is a commit of another request.
        """
        others = [
            name for entry in _commits(self._lines[lines:]) for name in entry.ids if name not in ids
        ]
        if others:
            raise LedgerError(
                f"{self.path}: {', '.join(others[:8])} {'was' if len(others) == 1 else 'were'} "
                "written to this run after its last checkpoint, and resuming would lose that; go "
                "on with EditedModel.open on this folder, or start a new run"
            )

    def _check_lines(self, lines: int) -> None:
        if lines > len(self._lines):
            raise LedgerError(
                f"{self.path} has {len(self._lines)} lines but the checkpoint was taken at "
                f"{lines}; it is older than the checkpoint, so restore the whole run folder"
            )
        dropped = self._lines[lines:]
        # An undo and its redo leave nothing that a repeat of the run would overwrite.
        by_run = [line for line in dropped if line.get("by") != "user"]
        if _undone_seqs(self._lines) != _undone_seqs([*self._lines[:lines], *by_run]):
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
        self._check_lines(lines)
        kept = self._lines[:lines]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode()
        self.ranks.first(lambda: self._rewrite(data))
        self._lines, self._valid_bytes, self._file_size = kept, len(data), len(data)
        self._commits = sum(line["op"] == "commit" for line in kept)

    def _rewrite(self, data: bytes) -> None:
        try:
            write_atomic(self.path, data)
        except OSError as error:
            raise write_error(error, self.path, "Every earlier edit is safe.") from error


def _commits(lines: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return the commits that some lines record, in order."""
    return [
        Entry(
            line["seq"], tuple(line["ids"]), line["file"], line["sha256"], tuple(line["requests"])
        )
        for line in lines
        if line["op"] == "commit"
    ]


def _undone_seqs(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the numbers of the commits that are undone after some lines."""
    undone: set[int] = set()
    for line in lines:
        if line["op"] == "undo":
            undone.update(line["of"])
        elif line["op"] == "redo":
            undone.difference_update(line["of"])
    return undone
