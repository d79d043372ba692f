"""Protocols: what the ledger and an edited model ask of an editor, so that neither imports one."""

from typing import Any, Protocol, runtime_checkable

from lightning_edit.edits.delta import Delta
from lightning_edit.types import EditBatch


@runtime_checkable  # the tests check types while they run
class EditHistory(Protocol):
    """An editor as its ledger sees it: told of every commit and undo, so that history follows."""

    def remember(self, delta: Delta) -> None:
        """Take a committed delta into the history."""

    def forget(self, delta: Delta) -> None:
        """Take an undone delta out of the history, exactly."""

    def recall(self, delta: Delta) -> None:
        """Learn that a delta is in force whose history a checkpoint has restored already."""


@runtime_checkable
class BoundEditor(EditHistory, Protocol):
    """An editor with its language model."""

    @property
    def batched(self) -> bool:
        """Whether several requests are solved together."""

    @property
    def language_model(self) -> Any:
        """The model that is edited."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    def edit(self, batch: EditBatch) -> Delta:
        """Find what writes a batch's requests into the model, which stays as it is."""
