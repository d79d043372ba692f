"""Commits of a journal: their delta files, and those that a user names by request id.

Nothing here imports torch, so that ``undo`` starts fast.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import LedgerError

#: The requests of a commit as dictionaries.
Requests = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Journal entry of one commit.

    Args:
        seq: Sequence number of the commit, from 1.
        ids: Ids of the requests it serves.
        file: Name of its delta file inside the journal's folder.
        sha256: Hash of that file.
        source: The requests, or what reads those of a commit: a long stream does not keep texts in
            memory.
    """

    seq: int
    ids: tuple[str, ...]
    file: str
    sha256: str
    source: Requests | Callable[[int], Requests]

    @property
    def requests(self) -> Requests:
        """The requests as dictionaries, read from the journal where they are on disk."""
        return self.source(self.seq) if callable(self.source) else self.source


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if _HAS_DIGEST else _digest(path)


_HAS_DIGEST = hasattr(hashlib, "file_digest")  # Python 3.11; 3.10 reads the file at once


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def delta_path(directory: Path, entry: Entry) -> Path:
    """Return the path of a commit's delta file; a journal cannot name a file elsewhere.

    Args:
        directory: The journal's folder.
        entry: The commit.

    Raises:
        LedgerError: If the name leaves the folder, or the file is a link.
    """
    path = directory / entry.file
    plain = entry.file not in ("", ".", "..") and not {"/", "\\", "\0"} & set(entry.file)
    if not plain or path.is_symlink():
        raise LedgerError(
            f"{directory / 'journal.jsonl'} names {entry.file!r} as the file of an edit, which is "
            "not a file in that folder; nothing was read. Do not use a run folder of a source that "
            "you do not trust"
        )
    return path


def require_file(directory: Path, entry: Entry) -> Path:
    """Check that a commit's delta file is there and nobody changed it; return its path.

    Args:
        directory: The journal's folder.
        entry: The commit.

    Raises:
        LedgerError: If the file is missing, was changed, or lies elsewhere.
    """
    path = delta_path(directory, entry)
    if not path.is_file():
        raise LedgerError(f"{path} is missing; restore the run folder as a whole")
    if file_hash(path) != entry.sha256:
        raise LedgerError(
            f"{path} is not what the journal recorded (SHA-256 differs); "
            "restore it, or start the run again in a new folder"
        )
    return path


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
