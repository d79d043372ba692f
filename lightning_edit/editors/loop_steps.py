"""What an editor does in Lightning's ``fit``, ``validate``, ``test`` and ``predict``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError, NothingToTrainError
from lightning_edit.types import EditRequest


class LoopSteps(pl.LightningModule, ABC):
    """Loops over the language model that an editor is bound to, as it is: pristine or edited.

    ``validate`` and ``test`` leave the scores to measurement callbacks, such as ``EditEvaluation``:
    what trains nothing has no score of its own. ``predict`` returns the model's answers. ``fit`` is
    refused by editors that need no training.
    """

    needs_fit: ClassVar[bool] = False
    """Whether the editor must be trained (``Trainer.fit``) before it can edit."""

    @property
    @abstractmethod
    def edits_in_force(self) -> Sequence[Delta]:
        """Edits in force on the bound model."""

    @abstractmethod
    def continuations(
        self, prompts: Sequence[str], max_new_tokens: int, in_force: Sequence[Delta]
    ) -> list[str]:
        """Generate greedy continuations of prompts."""

    @abstractmethod
    def place_language_model(self) -> None:
        """Move the language model to the editor's device."""

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The bound language model."""

    def setup(self, stage: str) -> None:
        """Check before ``fit`` that the editor can be trained and has a language model.

        Raises:
            NothingToTrainError: If there is nothing to train.
            NotBoundError: If there is no language model.
        """
        if stage == "fit":
            self.require_training()
        _ = self.language_model  # raises if there is none

    def on_fit_start(self) -> None:
        """Move the language model to the training device."""
        self.place_language_model()

    # Lightning requires the two methods below before it calls anything; `setup` then raises a clear
    # error.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run one training step; only trained editors override this."""
        self.require_training()

    def configure_optimizers(self) -> Any:
        """Return the optimiser; only trained editors override this."""
        self.require_training()

    def require_training(self) -> None:
        """Raise an error on ``fit`` for an editor that needs no training.

        Raises:
            NothingToTrainError: If there is nothing to train.
        """
        if not self.needs_fit:
            raise NothingToTrainError(
                f"{type(self).__name__} has nothing to train; "
                "run `lightning-edit edit` or EditTrainer().edit(editor, datamodule) instead of fit"
            )

    def on_validation_start(self) -> None:
        """Move the language model to the device, in ``validate``.

        Raises:
            ConfigError: If the Trainer has no callback that scores the model.
        """
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._begin("validate", LoopSteps.validation_step)

    def on_test_start(self) -> None:
        """Move the language model to the device.

        Raises:
            ConfigError: If the Trainer has no callback that scores the model.
        """
        self._begin("test", LoopSteps.test_step)

    def _begin(self, loop: str, silent: Any) -> None:
        # A callback is known by what it does: callbacks are above editors.
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # untyped there
        measured = any(callable(getattr(one, "measure", None)) for one in callbacks)
        own = getattr(type(self), silent.__name__) is not silent
        if not own and not measured:
            raise ConfigError(
                f"{type(self).__name__} is not trained, so it has no score of its own in `{loop}`; "
                "give the Trainer a callback that scores the language model, such as "
                "EditEvaluation()"
            )
        self.place_language_model()

    def on_predict_start(self) -> None:
        """Move the language model to the device."""
        self.place_language_model()

    def validation_step(self, requests: Any, batch_idx: int) -> None:
        """Leave the scores of a batch to the Trainer's callbacks.

        Args:
            requests: Not used.
            batch_idx: Not used.
        """

    def test_step(self, requests: Any, batch_idx: int) -> None:
        """Leave the scores of a batch to the Trainer's callbacks.

        Args:
            requests: Not used.
            batch_idx: Not used.
        """

    def predict_step(self, requests: Sequence[EditRequest], batch_idx: int) -> list[dict[str, Any]]:
        """Generate the language model's answers to the prompts of a batch of requests.

        Args:
            requests: The requests.
            batch_idx: Not used.

        Returns:
            For each request its ``id``, ``prompt``, ``target`` and the generated ``answer``: greedy
            decoding to the end of the text or 16 tokens.
        """
        prompts = [request.prompt for request in requests]
        answers = self.continuations(prompts, 16, self.edits_in_force)
        return [
            {
                "id": request.id,
                "prompt": request.prompt,
                "target": request.target,
                "answer": answer,
            }
            for request, answer in zip(requests, answers, strict=True)
        ]
