"""When a callback measures in any Lightning Trainer, and where its values go.

``fit``: before the first step of a training, every ``every_n_steps`` steps and after each
validation; without a validation loader after each epoch. ``validate`` and ``test``: once, after the
loop's own epoch.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lightning_edit.callbacks.context import EvalContext, Measurement, MeasurementDriver
from lightning_edit.callbacks.discovery import (
    data_requests,
    find_language_model,
    find_tokenizer,
)
from lightning_edit.distributed.sharding import gather
from lightning_edit.editors.base import Editor
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Responder
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.storage.jsonl import write_rows

log = logging.getLogger(__name__)


def log_values(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Send values to every logger of a trainer, and let each write them.

    Args:
        trainer: The trainer with the loggers.
        values: Values by name.
        step: Step to log at.
    """
    # `self.log` would drop values between two of the trainer's logging steps.
    for logger in trainer.loggers if values else ():
        logger.log_metrics(dict(values), step=step)
        logger.save()


def publish(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Put values into ``trainer.callback_metrics`` from a hook in which Lightning cannot log.

    Args:
        trainer: The trainer.
        values: Values by name.
    """
    trainer.callback_metrics.update({n: torch.tensor(value) for n, value in values.items()})


class MeasurementSchedule(Callback, ABC):
    """Lightning hooks of a measurement callback; see the module's docstring for when they measure.

    An edit session calls :meth:`observe` itself, so that these hooks do nothing under it.
    """

    tokenizer: Any
    model_attribute: str | None
    every_n_steps: int | None
    on_validation: bool
    directory: Path | None
    before: dict[str, float] | None
    values: dict[str, float]
    layout: PassLayout | None

    def __init__(self) -> None:
        super().__init__()
        self._last_step = 0
        self._measured = 0
        self._model_and_tokenizer: tuple[Any, Any] | None = None
        self._responder: Responder | None = None

    @abstractmethod
    def observe(self, context: EvalContext) -> Measurement:
        """Measure, check the values, and keep the first measurement as baseline."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the state before a new run."""

    def send(self, trainer: pl.Trainer, step: int) -> None:
        """Log the last values to every logger.

        Args:
            trainer: The trainer with the loggers.
            step: Step to log at.
        """
        log_values(trainer, self.values, step)

    def show(
        self, pl_module: pl.LightningModule, on_step: bool = True, logger: bool | None = False
    ) -> None:
        """Publish the last values as callback metrics, for checkpoints and early stopping.

        Args:
            pl_module: The module whose hook is running.
            on_step: Whether that hook belongs to a training step.
            logger: Whether the loggers still need the values; ``None``: if there are any.
        """
        pl_module.log_dict(
            self.values,
            logger=logger,
            on_step=on_step,
            on_epoch=not on_step,
            # All processes have the same values; averaging them only tells Lightning so. A mean of
            # three may differ in the last bit, and an edit session has the bits of one process.
            sync_dist=pl_module.trainer.world_size > 1
            and not isinstance(pl_module, MeasurementDriver),
            batch_size=1,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reset the state before a stream of edits and before a training from its first step.

        So a callback that watched a training measures the next one with a baseline of its own. A
        checkpoint is restored after this; a Trainer that trains on has a step above 0.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that runs.
            stage: The stage.
        """
        self._measured = 0
        begins = trainer.state.fn == TrainerFn.FITTING and trainer.global_step == 0
        if begins or isinstance(pl_module, MeasurementDriver):
            self.reset()

    def _find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = find_language_model(pl_module, self.model_attribute)
        self._model_and_tokenizer = model, find_tokenizer(self.tokenizer, trainer, pl_module)
        self._responder = None
        if isinstance(pl_module, Editor) and not pl_module.edits_weights:
            self._responder = pl_module.responder(pl_module.edits_in_force)
        if self.layout is None:
            self.layout = PassLayout.choose(model)

    # -------------------------------------------------------------------------------------- fit

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the language model and measure the baseline before the first step.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.

        Raises:
            ConfigError: If the language model or the tokenizer is not found.
        """
        if isinstance(pl_module, MeasurementDriver):
            return
        self._find(trainer, pl_module)
        if self.before is not None:
            return
        if trainer.ckpt_path is not None:
            log.warning(
                "%s was written without %s: the baseline is the model as it is there, "
                "not as it was before training",
                trainer.ckpt_path,
                type(self).__name__,
            )
        self._measure_and_log(trainer)
        self._measured = 0  # the baseline is no measurement of what the training does

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Measure every ``every_n_steps`` optimizer steps.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.
            *args: Outputs, batch and batch index.
            **kwargs: The same by name.
        """
        if self._model_and_tokenizer is None or not self.every_n_steps:
            return
        if trainer.global_step - self._last_step >= self.every_n_steps:
            self._measure_and_log(trainer)
            self.show(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after an epoch of a training that has no validation loader.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.
        """
        if self._model_and_tokenizer is None or not self.on_validation or _validates(trainer):
            return
        if trainer.global_step != self._last_step:
            self._measure_and_log(trainer)
        self.show(pl_module, on_step=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure at the end of a training that ended before its first validation or epoch.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was trained.
        """
        if self._model_and_tokenizer is None or not self.on_validation or self._measured:
            return
        if trainer.global_step != self._last_step:
            self._measure_and_log(trainer)
            publish(trainer, self.values)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Release the model and the tokenizer; warn if nothing was measured in the training.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was trained.
        """
        if self._model_and_tokenizer is not None and not self._measured and trainer.global_step:
            log.warning(
                "%s measured nothing after the first of %d steps: on_validation is %s and "
                "every_n_steps is %s; give it on_validation=True, or every_n_steps of at most %d",
                type(self).__name__,
                trainer.global_step,
                self.on_validation,
                self.every_n_steps,
                trainer.global_step,
            )
        self._model_and_tokenizer, self._responder = None, None

    # ---------------------------------------------------------------- validation, also within fit

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the language model, in ``validate``.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is validated.

        Raises:
            ConfigError: If the language model or the tokenizer is not found.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            self._find(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after a validation epoch, except in the sanity check.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained or validated.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            self._measure_stage(trainer, pl_module)
            return
        if self._model_and_tokenizer is None or not self.on_validation or trainer.sanity_checking:
            return
        if trainer.global_step != self._last_step:
            self._measure_and_log(trainer)
        self.show(pl_module, on_step=False)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the language model.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is tested.

        Raises:
            ConfigError: If the language model or the tokenizer is not found.
        """
        self._find(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after the test epoch.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is tested.
        """
        self._measure_stage(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the model and the tokenizer; warn if a validation or test had no batch.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that ran.
            stage: The stage.
        """
        if stage in ("validate", "test") and not self._measured:
            log.warning(
                "%s measured nothing, since `%s` had no batch; give it a loader with at least one, "
                "such as a split of the data that is not empty",
                type(self).__name__,
                str(getattr(stage, "value", stage)),  # Lightning's own name of the stage
            )
        self._model_and_tokenizer, self._responder = None, None

    # -------------------------------------------------------------------------------- measuring

    def _measure_stage(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure_and_log(trainer, data_requests(trainer))
        # `validate` and `test` log, show and return what goes through here.
        self.show(pl_module, on_step=False, logger=None)

    def _measure_and_log(self, trainer: pl.Trainer, requests: Sequence[Any] = ()) -> None:
        assert self._model_and_tokenizer is not None  # set at the start of every stage
        model, tokenizer = self._model_and_tokenizer
        prompts = PromptEncoder.for_model(model, tokenizer)
        context = EvalContext(
            trainer.global_step,
            model,
            prompts.tokenizer,
            requests,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            layout=self.layout,
            responder=self._responder,
            prompts=prompts,
        )
        # Lightning tests in inference mode; its tensors could not be updated in a later training.
        gradients, measured_at = torch.is_grad_enabled(), self._last_step
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            found = self.observe(context)
        self._measured += 1
        if trainer.state.fn == TrainerFn.FITTING:
            self.send(trainer, context.step)
        else:  # a Trainer that only validates counts from 0; the training's steps are others
            self._last_step = measured_at
        if self.directory is not None:
            rows = gather(found.rows)
            if trainer.is_global_zero:
                fn = trainer.state.fn
                name = "step" if fn in (None, TrainerFn.FITTING) else str(fn.value)
                path = self.directory / f"{name}-{context.step:08d}.jsonl"
                write_rows(path, [{"step": context.step, **row} for row in rows])


def _validates(trainer: pl.Trainer) -> bool:
    """Return whether this training has validation batches."""
    batches = trainer.num_val_batches
    counted = sum(batches) if isinstance(batches, list) else batches
    return trainer.enable_validation and counted > 0
