"""Staged delta: in the model for the length of a ``with`` block, then committed or dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import NewValue
from lightning_edit.edits.journal import Entry
from lightning_edit.types import EditRequest

if TYPE_CHECKING:
    from lightning_edit.edits.ledger import Ledger


@dataclass
class StagedEdit:
    """A delta that is being tried; see :meth:`Ledger.staged`.

    Args:
        ledger: Whose model has it.
        delta: The update.
        requests: The requests that it serves.
        staged: New values by parameter name.
        entry: Its commit, once there is one.
    """

    ledger: "Ledger"
    delta: Delta
    requests: Sequence[EditRequest]
    staged: dict[str, NewValue]
    entry: Entry | None = None

    def commit(self) -> Entry:
        """Write the delta into the journal, and keep it in the model.

        Returns:
            The commit.

        Raises:
            LedgerWriteError: If the disk refuses; the model is as before when the block ends.
        """
        if self.entry is None:
            self.entry = self.ledger._commit(self)
        return self.entry
