"""Integrity of a resumed run: hashes in its checkpoint, checked before any file is truncated."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_edit.edits.entries import file_hash
from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError
from lightning_edit.storage.content_hash import content_hash, is_plain
from lightning_edit.storage.jsonl import RowFile
from lightning_edit.storage.run_folder import RunFolder

_CHANGED = "restore the run folder as a whole, or start a new run"


class RunIntegrity:
    """Hashes of the files of a run, for its checkpoints.

    Args:
        folder: The run folder.
        journal: Its journal of edits.
        rows: Its rows of scores.
        measures: Its rows of measurements.
    """

    def __init__(
        self, folder: RunFolder, journal: Journal, rows: RowFile, measures: RowFile
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._growing = {"rows": rows, "measures": measures}
        self._fixed: dict[str, str] = {}

    def hashes(self) -> dict[str, str]:
        """Return the hashes of rows and baseline for a checkpoint; the cost does not grow."""
        if not self._fixed:  # neither file changes during a run
            files = (self._folder.baseline, self._folder.passes)
            self._fixed = {path.name: file_hash(path) for path in files}
        return {name: file.digest() for name, file in self._growing.items()} | self._fixed

    def check(self, state: Mapping[str, Any], covered: int = 0) -> None:
        """Check everything that a checkpoint refers to; nothing is written.

        Args:
            state: The session's state in the checkpoint: lines and head of the journal, bytes of
                the row files, hashes (absent in those of older versions).
            covered: Highest number of a commit whose sum a verified snapshot holds.

        Raises:
            LedgerError: If the folder holds another run, or a file of it is missing or changed.
        """
        self._journal.check_truncation(state["lines"], state["head"], covered)
        hashes = state.get("hashes", {})
        for name, file in self._growing.items():
            file.check(state[name], hashes.get(name))
        for path in (self._folder.baseline, self._folder.passes):
            recorded = hashes.get(path.name)
            if recorded is not None and (not path.is_file() or file_hash(path) != recorded):
                raise LedgerError(
                    f"{path} is missing, or was changed after the checkpoint was taken; {_CHANGED}"
                )


def history_record(checkpoint: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Record hashes of what a checkpoint holds of editor and callbacks, for :func:`check_history`.

    Args:
        checkpoint: Lightning's dictionary, with the editor's buffers.
        keys: What the editor has added itself.
    """
    content = [checkpoint.get("state_dict", {}), {key: checkpoint[key] for key in keys}]
    states = {
        name: state for name, state in checkpoint.get("callbacks", {}).items() if is_plain(state)
    }
    return {
        "keys": list(keys),
        "hash": content_hash(content),
        "callbacks": content_hash(dict(sorted(states.items()))),
    }


def check_history(checkpoint: Mapping[str, Any], record: Mapping[str, Any] | None) -> None:
    """Check that what a checkpoint holds of editor and callbacks is what was saved.

    Args:
        checkpoint: Lightning's dictionary.
        record: Result of :func:`history_record`; ``None`` in checkpoints of older versions.

    Raises:
        LedgerError: If it was changed.
    """
    if record is None:
        return
    keys = record["keys"]
    found = history_record(checkpoint, keys) if set(keys) <= set(checkpoint) else {}
    for name, what in (("hash", "editor's history"), ("callbacks", "state of callbacks")):
        # Checkpoints of older versions have no hash of callbacks.
        if name in record and found.get(name) != record[name]:
            raise LedgerError(
                f"the {what} in the checkpoint is not what was saved (SHA-256 differs); {_CHANGED}"
            )
