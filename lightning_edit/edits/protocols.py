"""Editor protocols (structural types) for the ledger and edited model, to avoid import cycles."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditBatch, EditRequest


@runtime_checkable  # the tests check types while they run
class EditHistory(Protocol):
    """An editor as its ledger sees it: its history follows from the edits in force."""

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the list of edits in force; see :meth:`Editor.on_history`."""


@runtime_checkable
class Runtime(Protocol):
    """What acts when the model is asked, for edits that are no updates of weights.

    A ledger with one installs ``Delta.state`` and ``Delta.prompts`` through it; one without refuses
    such a commit.
    """

    def install(self, in_force: Sequence[Delta]) -> None:
        """Build what acts from the list of edits in force alone.

        Args:
            in_force: Deltas, in the order of their commits. With none of them nothing is left on
                the model: same modules, no hook.
        """


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

    @property
    def prompts(self) -> PromptEncoder:
        """Tokenizer with the format of prompts."""

    def runtime(self) -> Runtime | None:
        """Return what installs edits that are no updates of weights, or ``None``."""

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Any:
        """Return what is asked in place of the bare model, a ``Responder``."""

    def continuations(
        self, prompts: Sequence[str], max_new_tokens: int, in_force: Sequence[Delta]
    ) -> list[str]:
        """Generate greedy continuations of prompts with the edits in force."""

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the delta for a batch of requests; the model itself is not changed."""

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute one delta per request, each as the only edit of the current model."""


@runtime_checkable
class Conditions(Protocol):
    """Conditions of a commit, see :class:`lightning_edit.Transaction`."""

    def before(
        self, editor: Any, in_force: Sequence[Delta], requests: Sequence[EditRequest]
    ) -> "Check":
        """Measure the model before an edit; what is returned then checks the edit."""


@runtime_checkable
class Check(Protocol):
    """Check of one edit while the model has its bits."""

    def refusal(self, delta: Delta) -> str | None:
        """Return why the edit is refused, or ``None``."""
