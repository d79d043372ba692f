"""Staged delta: in the model for the length of a ``with`` block, then committed or dropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import NewValue
from lightning_edit.edits.entries import Entry
from lightning_edit.types import EditRequest


@dataclass
class StagedEdit:
    """A delta that the model has, and that no journal has yet; made by ``Ledger.staged``.

    Args:
        delta: The update.
        requests: The requests that it serves.
        staged: New values by parameter name.
        record: Commits it; the ledger's own.
        entry: Its commit, once there is one.
    """

    delta: Delta
    requests: Sequence[EditRequest]
    staged: dict[str, NewValue]
    record: Callable[["StagedEdit"], Entry]
    entry: Entry | None = None

    def commit(self) -> Entry:
        """Write the delta into the journal, and keep it in the model.

        Returns:
            The commit.

        Raises:
            LedgerWriteError: If the disk refuses; the model is as before when the block ends.
        """
        if self.entry is None:
            self.entry = self.record(self)
        return self.entry
