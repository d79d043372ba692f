"""The journal of a run on disk: one line an operation; a kill at any point loses nothing.

Every line carries a hash over itself and the line before. A last line that was cut off by a kill is
dropped; any other line that does not fit is an error. Nothing here imports torch, so that
``undo`` answers at once.
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
_START = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One commit of the journal.

    Args:
        seq: Number of the commit, from 1.
        ids: Requests it serves.
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


def _chain(previous: str, line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()


class Journal:
    """The list of operations of one run.

    Args:
        directory: Folder of ``journal.jsonl`` and the delta files; made when missing.

    Raises:
        LedgerError: If a line other than a cut-off last one is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "journal.jsonl"
        self._lines: list[dict[str, Any]] = []
        self._bytes = 0
        self._size = 0
        self._commits = 0
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        self._size = len(content)
        previous = _START
        for number, piece in enumerate(complete_lines(content), start=1):
            try:
                line = json.loads(piece)
                chain = line.pop("chain")
            except (ValueError, KeyError, TypeError, AttributeError):
                line, chain = {}, ""
            if chain != _chain(previous, line):
                raise LedgerError(
                    f"{self.path}, line {number}: the journal was changed or damaged after it was "
                    "written; restore the file, or start the run again in a new folder"
                )
            previous = chain
            self._lines.append({**line, "chain": chain})
            self._commits += line["op"] == "commit"
            self._bytes += len(piece) + 1

    @property
    def head(self) -> str:
        """Hash of the whole journal so far."""
        return str(self._lines[-1]["chain"]) if self._lines else _START

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def opening(self) -> Mapping[str, Any] | None:
        """What the run was opened with (model hash, editor), or ``None``."""
        return self._lines[0] if self._lines else None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line and wait until it is on disk.

        Args:
            line: Plain containers.

        Raises:
            LedgerWriteError: If the disk refuses; the journal is as it was.
        """
        chained = {**line, "chain": _chain(self.head, line)}
        data = (json.dumps(chained, ensure_ascii=False) + "\n").encode()
        if self._size != (self.path.stat().st_size if self.path.exists() else 0):
            raise LedgerError(
                f"{self.path} was written by another process meanwhile; let only one work on a run "
                "folder, and start this one again"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # A cut-off tail of an earlier kill, or of a write that failed, is overwritten.
            append_synced(self.path, self._bytes, data)
        except OSError as error:
            self._drop_tail()
            raise write_error(error, self.path, "Every earlier edit is safe.") from error
        self._lines.append(chained)
        self._commits += line["op"] == "commit"
        self._bytes += len(data)
        self._size = self._bytes

    def _drop_tail(self) -> None:
        """Take back a line whose write failed after it had reached the file."""
        with suppress(OSError):
            os.truncate(self.path, self._bytes)
            self._size = self._bytes

    def open(self, **facts: Any) -> None:
        """Write the first line, or check that it says the same.

        Args:
            **facts: What identifies the run: model hash, editor.

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
        """Record that commits were taken back.

        Args:
            seqs: Their numbers.
            by: ``run`` for the editing loop itself, ``user`` for a later hand.
        """
        self.append({"op": "undo", "of": list(seqs), "by": by})

    @property
    def next_seq(self) -> int:
        """Number of the next commit."""
        return 1 + self._commits

    def active(self) -> list[Entry]:
        """Return the commits that stand, in order."""
        gone = {seq for line in self._lines if line["op"] == "undo" for seq in line["of"]}
        return [entry for entry in self.commits() if entry.seq not in gone]

    def commits(self) -> list[Entry]:
        """Return every commit ever made, in order."""
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
        """Go back to an earlier state, to redo what came after it.

        Args:
            lines: Lines to keep.

        Raises:
            LedgerError: If there are fewer, or if somebody undid edits by hand since.
        """
        if lines > len(self._lines):
            raise LedgerError(
                f"{self.path} has {len(self._lines)} lines but the checkpoint was taken at "
                f"{lines}; it is older than the checkpoint, so restore the whole run folder"
            )
        dropped = self._lines[lines:]
        if any(line["op"] == "undo" and line.get("by") == "user" for line in dropped):
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
        self._lines, self._bytes, self._size = kept, len(data), len(data)
        self._commits = sum(line["op"] == "commit" for line in kept)


def select(active: Sequence[Entry], ids: Sequence[str]) -> list[Entry]:
    """Find the commits that hold the given requests and nothing else.

    Args:
        active: Commits that stand.
        ids: Requests to take back.

    Returns:
        Their commits, in order.

    Raises:
        LedgerError: If a request is unknown, or shares its commit with one that is to stay.
    """
    wanted = set(ids)
    known = {request for entry in active for request in entry.ids}
    if missing := sorted(wanted - known):
        listed = ", ".join(sorted(known)[:8]) or "none"
        raise LedgerError(
            f"no edit in force is called {', '.join(map(repr, missing))}; in force: {listed}"
            f"{' …' if len(known) > 8 else ''}"
        )
    chosen = [entry for entry in active if wanted & set(entry.ids)]
    for entry in chosen:
        if rest := sorted(set(entry.ids) - wanted):
            raise LedgerError(
                f"{', '.join(sorted(wanted & set(entry.ids)))} was solved together with "
                f"{', '.join(rest[:8])}{' …' if len(rest) > 8 else ''}; undo the whole batch"
            )
    return chosen
