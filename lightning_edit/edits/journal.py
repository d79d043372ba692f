"""Journal of a run on disk: append-only, hash-chained, one line per operation, crash-safe.

Every line carries a hash over itself and the line before. A last line that was cut off by a kill is
dropped; any other line with a wrong hash is an error. Nothing here imports torch, so that ``undo``
starts fast.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import LedgerError
from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.jsonl import append_synced, complete_lines

SCHEMA = 1
_FIRST_HASH = "0" * 64


@dataclass(frozen=True)
class Entry:
    """Journal entry of one commit.

    Args:
        seq: Sequence number of the commit, from 1.
        ids: Ids of the requests it serves.
        file: Name of its delta file inside the journal's folder.
        sha256: Hash of that file.
        requests: The requests as dictionaries.
    """

    seq: int
    ids: tuple[str, ...]
    file: str
    sha256: str
    requests: tuple[Mapping[str, Any], ...]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if _HAS_DIGEST else _digest(path)


_HAS_DIGEST = hasattr(hashlib, "file_digest")  # Python 3.11; 3.10 reads the file at once


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _chain_hash(previous: str, line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()


class Journal:
    """Append-only journal of the commits and undos of one run.

    Args:
        directory: Folder of ``journal.jsonl`` and the delta files; created if missing.

    Raises:
        LedgerError: If a line other than a cut-off last one is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
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
        if self._file_size != (self.path.stat().st_size if self.path.exists() else 0):
            raise LedgerError(
                f"{self.path} was changed by another process meanwhile; use a run folder with one "
                "process at a time, and start this one again"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # A partial last line of an earlier kill or failed write is overwritten.
            append_synced(self.path, self._valid_bytes, data)
        except OSError as error:
            self._drop_tail()
            raise write_error(error, self.path, "Every earlier edit is safe.") from error
        self._lines.append(chained)
        self._commits += line["op"] == "commit"
        self._valid_bytes += len(data)
        self._file_size = self._valid_bytes

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
        return [
            Entry(
                line["seq"],
                tuple(line["ids"]),
                line["file"],
                line["sha256"],
                tuple(line["requests"]),
            )
            for line in self._lines
            if line["op"] == "commit"
        ]

    def truncate(self, lines: int) -> None:
        """Truncate the journal to an earlier state, so that later operations are redone.

        Args:
            lines: Number of lines to keep.

        Raises:
            LedgerError: If there are fewer, or if the user has undone edits since.
        """
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
        kept = self._lines[:lines]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode()
        try:
            write_atomic(self.path, data)
        except OSError as error:
            raise write_error(error, self.path, "Every earlier edit is safe.") from error
        self._lines, self._valid_bytes, self._file_size = kept, len(data), len(data)
        self._commits = sum(line["op"] == "commit" for line in kept)


def _undone_seqs(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the numbers of the commits that are undone after some lines."""
    undone: set[int] = set()
    for line in lines:
        if line["op"] == "undo":
            undone.update(line["of"])
        elif line["op"] == "redo":
            undone.difference_update(line["of"])
    return undone


def select(
    active: Sequence[Entry], ids: Sequence[str], what: str = "in force", verb: str = "undo"
) -> list[Entry]:
    """Find the commits that hold the given requests and nothing else.

    Args:
        active: Commits that stand.
        ids: Requests to take back, or to put back.
        what: What the commits are, for the error.
        verb: What is done with them, for the error.

    Returns:
        Their commits, in order.

    Raises:
        LedgerError: If a request is unknown, or shares its commit with one that stays in force.
    """
    wanted = set(ids)
    known = {request for entry in active for request in entry.ids}
    if missing := sorted(wanted - known):
        listed = ", ".join(sorted(known)[:8]) or "none"
        raise LedgerError(
            f"no edit {what} is called {', '.join(map(repr, missing))}; {what}: {listed}"
            f"{' …' if len(known) > 8 else ''}"
        )
    chosen = [entry for entry in active if wanted & set(entry.ids)]
    for entry in chosen:
        if rest := sorted(set(entry.ids) - wanted):
            raise LedgerError(
                f"{', '.join(sorted(wanted & set(entry.ids)))} was solved together with "
                f"{', '.join(rest[:8])}{' …' if len(rest) > 8 else ''}; {verb} the whole batch"
            )
    return chosen


def select_undone(
    undone: Sequence[Entry], in_force: Sequence[Entry], ids: Sequence[str]
) -> list[Entry]:
    """Find the undone commits of the given requests; of several of a request the newest.

    Args:
        undone: Commits that were taken back, in order.
        in_force: Commits that stand.
        ids: Requests to put back into force.

    Returns:
        Their commits, in order.

    Raises:
        LedgerError: If a request was not taken back, is in force again, or shares its commit with
            one that is not named.
    """
    newest = {request: entry.seq for entry in undone for request in entry.ids}
    candidates = [entry for entry in undone if entry.seq in set(newest.values())]
    chosen = select(candidates, ids, "undone", "redo")
    standing = {request for entry in in_force for request in entry.ids}
    if double := sorted(standing & {request for entry in chosen for request in entry.ids}):
        raise LedgerError(
            f"already in force: {', '.join(double[:8])}; undo them before an older edit of the "
            "same request comes back"
        )
    return chosen
