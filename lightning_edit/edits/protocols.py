"""Editor protocols (structural types) for the ledger and edited model, to avoid import cycles."""

from typing import Any, Protocol, runtime_checkable

from lightning_edit.edits.delta import Delta
from lightning_edit.types import EditBatch


@runtime_checkable  # the tests check types while they run
class EditHistory(Protocol):
    """Editor history that follows every commit and undo of the ledger."""

    def remember(self, delta: Delta) -> None:
        """Add a committed delta to the history."""

    def forget(self, delta: Delta) -> None:
        """Remove an undone delta from the history, exactly."""

    def recall(self, delta: Delta) -> None:
        """Register a delta in force whose history a checkpoint has already restored."""


@runtime_checkable
class BoundEditor(EditHistory, Protocol):
    """Editor that is bound to a language model."""

    @property
    def batched(self) -> bool:
        """Whether several requests are solved together."""

    @property
    def language_model(self) -> Any:
        """Language model that is edited."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the language model."""

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the delta for a batch of requests; the model itself is not changed."""
