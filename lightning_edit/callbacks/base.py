"""Base class of evaluation callbacks, for a stream of edits or for any Lightning training.

A :class:`MeasurementCallback` subclass defines the values; this module defines when to measure and
where to log. Under :meth:`EditTrainer.edit <lightning_edit.session.trainer.EditTrainer.edit>` the
session measures the pristine model and every evaluation point; in any other Trainer the callback
measures before the first step, every ``every_n_steps`` steps and after each validation.
"""

import logging
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_edit.callbacks.context import Commit, EvalContext, Measurement, MeasurementDriver
from lightning_edit.callbacks.discovery import find_language_model, find_tokenizer
from lightning_edit.distributed.sharding import gather
from lightning_edit.exceptions import NotFiniteError
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.storage.jsonl import write_rows
from lightning_edit.storage.run_folder import RunFolder

__all__ = [
    "Commit",
    "EvalContext",
    "Measurement",
    "MeasurementCallback",
    "MeasurementDriver",
    "gather",
]

log = logging.getLogger(__name__)


class MeasurementCallback(Callback, ABC):
    """Abstract Lightning callback that evaluates a language model and logs metrics.

    Under ``EditTrainer`` the values are stored in the points of ``results.json`` and, with the
    rows, in ``measures.jsonl``; a resumed run has the values of an uninterrupted one. In every
    Trainer they go to all loggers and to ``trainer.callback_metrics``.

    A subclass keeps its reference values in :meth:`state_dict`, small and in plain containers or
    tensors, and computes values with metrics whose states are sums, so that each process may hold
    any share of the work, even none.

    Args:
        tokenizer: The model's tokenizer or its folder; by default the attribute ``tokenizer`` of
            the LightningModule or its data module. ``EditTrainer`` ignores this and the next three.
        model_attribute: Dotted name of the language model in the LightningModule; only needed
            where it holds several.
        every_n_steps: Measure every this many optimizer steps; ``None``: never.
        on_validation: Measure at the end of every validation.
        directory: Folder for one ``step-<n>.jsonl`` of rows per measurement; ``None``: rows are
            kept under ``EditTrainer`` only.
        prefix: Prefix of every metric name, e.g. ``"facts/"``; separates instances of one class.
    """

    reads_others: ClassVar[bool] = False
    """Whether :meth:`on_results` reads files of other callbacks, so that it must run last."""
    cumulative: ClassVar[bool] = False
    """Whether values cover the run so far. Otherwise they are of one point, and under the protocol
    ``single`` ``results.json`` has their mean over edits."""

    def __init__(
        self,
        tokenizer: Any = None,
        model_attribute: str | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        directory: str | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model_attribute = model_attribute
        self.every_n_steps = every_n_steps
        self.on_validation = on_validation
        self.directory = None if directory is None else Path(directory)
        self.prefix = prefix
        self.before: dict[str, float] | None = None
        self.values: dict[str, float] = {}
        self.layout: PassLayout | None = None
        self._last_step = 0
        self._model_and_tokenizer: tuple[Any, Any] | None = None

    # ------------------------------------------------------------------------- of each subclass

    @abstractmethod
    def measure(self, context: EvalContext) -> Measurement:
        """Evaluate the model and leave its weights, mode and random state unchanged.

        The first call of a run gets the model before the first edit or step: ``self.before`` is
        ``None`` in this call, and its values in later ones.

        Args:
            context: The model, and the position in the run.
        """

    def on_commit(self, commit: Commit) -> None:
        """Run after each commit of a delta; ``EditTrainer`` only.

        Args:
            commit: The delta, and the edited model.
        """

    def on_refused(self, commit: Commit, error: NotFiniteError) -> bool:
        """Decide whether the stream continues without a non-finite edit; ``EditTrainer`` only.

        Args:
            commit: The commit that was refused; the model is unchanged.
            error: The reason.
        """
        return False

    def on_results(self, folder: RunFolder) -> None:
        """Run after ``results.json`` of a finished run is written; ``EditTrainer`` only.

        Args:
            folder: The run's folder, with ``results.json``.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forget_run" in vars(cls):
            raise TypeError(f"{cls.__name__}.forget_run is called `reset` now; rename the method")

    def reset(self) -> None:
        """Reset the state, so that one callback can watch several ``EditTrainer`` runs."""
        self.before, self.values, self._last_step, self.layout = None, {}, 0, None

    # -------------------------------------------------------------------------------- measuring

    def observe(self, context: EvalContext) -> Measurement:
        """Measure, check that values are finite, and keep the first measurement as baseline.

        Args:
            context: The model, and the position in the run.

        Returns:
            The measurement, with prefixed metric names.

        Raises:
            ArithmeticError: If a value is not finite.
        """
        found = self.measure(context)
        values = {self.prefix + name: float(value) for name, value in found.values.items()}
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ArithmeticError(
                f"{type(self).__name__} measured {broken[0]} = {values[broken[0]]} after "
                f"{context.step}; values must be finite: cap them for a broken model"
            )
        if self.before is None:
            self.before = values
        self.values = values
        self._last_step = context.step
        return Measurement(values, found.rows)

    def send(self, trainer: pl.Trainer, step: int) -> None:
        """Log the last values to every logger.

        Args:
            trainer: The trainer with the loggers.
            step: Step to log at.
        """
        # `self.log` would drop values between two of the trainer's logging steps.
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=step)

    def show(self, pl_module: pl.LightningModule, on_step: bool = True) -> None:
        """Publish the last values as callback metrics, for checkpoints and early stopping.

        Args:
            pl_module: The module whose hook is running; the loggers have the values already.
            on_step: Whether that hook belongs to a training step.
        """
        pl_module.log_dict(
            self.values,
            logger=False,
            on_step=on_step,
            on_epoch=not on_step,
            # All processes have the same values; averaging them only tells Lightning so.
            sync_dist=pl_module.trainer.world_size > 1,
            batch_size=1,
        )

    # -------------------------------------------------------------------------------- Lightning

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: baseline values and pass layout, for a resumed run."""
        return {
            "before": self.before,
            "values": self.values,
            "step": self._last_step,
            "layout": None if self.layout is None else self.layout.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and tensors.
        """
        self.before = state_dict["before"]
        self.values = state_dict["values"]
        self._last_step = state_dict["step"]
        layout = state_dict.get("layout")  # absent in checkpoints of older versions
        self.layout = None if layout is None else PassLayout.from_dict(layout)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reset the state before a stream of edits; a checkpoint is restored after this.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that runs.
            stage: The stage.
        """
        if isinstance(pl_module, MeasurementDriver):
            self.reset()

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
        model = find_language_model(pl_module, self.model_attribute)
        self._model_and_tokenizer = model, find_tokenizer(self.tokenizer, trainer, pl_module)
        if self.layout is None:
            self.layout = PassLayout.choose(model)
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

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after a validation epoch, except in the sanity check.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.
        """
        if self._model_and_tokenizer is None or not self.on_validation or trainer.sanity_checking:
            return
        if trainer.global_step != self._last_step:
            self._measure_and_log(trainer)
        self.show(pl_module, on_step=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Release the references to the model and tokenizer.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was trained.
        """
        self._model_and_tokenizer = None

    def _measure_and_log(self, trainer: pl.Trainer) -> None:
        assert self._model_and_tokenizer is not None  # set in on_fit_start
        model, tokenizer = self._model_and_tokenizer
        prompts = PromptEncoder.for_model(model, tokenizer)
        context = EvalContext(
            trainer.global_step,
            model,
            prompts.tokenizer,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            layout=self.layout,
            prompts=prompts,
        )
        found = self.observe(context)
        self.send(trainer, context.step)
        if self.directory is not None:
            rows = gather(found.rows)
            if trainer.is_global_zero:
                path = self.directory / f"step-{context.step:08d}.jsonl"
                write_rows(path, [{"step": context.step, **row} for row in rows])
