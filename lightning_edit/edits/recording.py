"""Recording of a commit on disk: first its delta file, then its line in the journal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.entries import Entry, file_hash
from lightning_edit.edits.journal import Journal
from lightning_edit.storage.atomic import write_error


def record(journal: Journal, delta: Delta, requests: Sequence[Mapping[str, Any]]) -> Entry:
    """Write a delta and the journal's line about it; a kill between the two leaves no commit.

    Args:
        journal: The journal.
        delta: The delta.
        requests: The requests that it serves, as dictionaries.

    Returns:
        The commit.

    Raises:
        LedgerWriteError: If the disk write fails; nothing is committed then.
        LedgerError: If another process has written the journal.
    """
    name, sha256 = journal.ranks.first(lambda: _save(journal, delta))
    return journal.commit(delta.request_ids, name, sha256, requests)


def _save(journal: Journal, delta: Delta) -> tuple[str, str]:
    """Write the delta file of a journal's next commit; return its name and hash."""
    name = f"{journal.next_seq:06d}.safetensors"
    path = journal.directory / name
    new = path.with_name("new.safetensors")
    journal.require_unchanged()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            delta.save(new)
            # Another process may have committed a file of this name meanwhile.
            journal.require_unchanged()
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        state = "The model and every earlier edit are unchanged."
        raise write_error(error, path, state) from error
    return name, file_hash(path)
