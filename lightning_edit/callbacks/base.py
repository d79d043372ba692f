"""Callbacks that measure a language model at points of a stream of edits, or of anyone's training.

A subclass of :class:`MeasurementCallback` says what is measured; when, and where the numbers go, is
said here. In :meth:`EditTrainer.edit <lightning_edit.session.trainer.EditTrainer.edit>` the session
asks at the pristine model and at every evaluation point; in any other Trainer the callback asks
before the first step, every few steps and after validations.
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
    """Base class of callbacks that measure a language model.

    In our loop the values stand in the points of ``results.json`` and, with the rows, in
    ``measures.jsonl``; a resumed run has the numbers of an uninterrupted one. Everywhere they go to
    all loggers and to ``trainer.callback_metrics``.

    A subclass keeps whatever it compares with in :meth:`state_dict`, small and in plain containers
    or tensors, and computes values with metrics whose states are sums, so that processes may hold
    any share of the work, even none.

    Args:
        tokenizer: The model's tokenizer or its folder; by default the attribute ``tokenizer`` of
            the LightningModule or its data module. Not used in our loop, nor are the next three.
        model_attribute: Dotted name of the language model in the LightningModule; only needed
            where it holds several.
        every_n_steps: Measure each time that many optimiser steps have passed; ``None``: never.
        on_validation: Measure at the end of every validation.
        directory: Folder for one ``step-<n>.jsonl`` a measurement with the rows; ``None``: no rows
            outside our loop.
        prefix: Put before every name, e.g. ``"facts/"``; tells several of one class apart.
    """

    reads_others: ClassVar[bool] = False
    """Whether :meth:`on_results` reads what other callbacks write there, so that it comes last."""
    cumulative: ClassVar[bool] = False
    """Whether values are of the run so far. Otherwise they are of one point, and where edits are
    measured each alone, ``results.json`` has their mean."""

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
        self._step = 0
        self._found: tuple[Any, Any] | None = None

    # ------------------------------------------------------------------------- of each subclass

    @abstractmethod
    def measure(self, context: EvalContext) -> Measurement:
        """Measure a model. The model, its mode and all random numbers are as before afterwards.

        The first call of a run is on the model before the first edit or step: ``self.before`` is
        ``None`` then, and later what that call returned.

        Args:
            context: The model, and how far the run has come.
        """

    def on_commit(self, commit: Commit) -> None:
        """Look at what was just written; our loop only.

        Args:
            commit: The delta, and the model that has it.
        """

    def on_refused(self, commit: Commit, error: NotFiniteError) -> bool:
        """Say whether the stream goes on without an edit that is not finite; our loop only.

        Args:
            commit: What could not be written; the model is as before it.
            error: Why.
        """
        return False

    def on_results(self, folder: RunFolder) -> None:
        """Look at the finished run; our loop only.

        Args:
            folder: The run's folder, with ``results.json``.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forget_run" in vars(cls):
            raise TypeError(f"{cls.__name__}.forget_run is called `reset` now; rename the method")

    def reset(self) -> None:
        """Start anew: the same callback may watch several runs of our loop."""
        self.before, self.values, self._step, self.layout = None, {}, 0, None

    # -------------------------------------------------------------------------------- measuring

    def observe(self, context: EvalContext) -> Measurement:
        """Measure, and remember the first measurement.

        Args:
            context: The model, and how far the run has come.

        Returns:
            The measurement, names with the prefix.

        Raises:
            ArithmeticError: If a value is not finite.
        """
        found = self.measure(context)
        values = {self.prefix + name: float(value) for name, value in found.values.items()}
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ArithmeticError(
                f"{type(self).__name__} measured {broken[0]} = {values[broken[0]]} after "
                f"{context.step}; a measure must be finite: cap what a broken model gives"
            )
        if self.before is None:
            self.before = values
        self.values = values
        self._step = context.step
        return Measurement(values, found.rows)

    def send(self, trainer: pl.Trainer, step: int) -> None:
        """Give the last values to every logger.

        Args:
            trainer: Whose loggers.
            step: Where on their axis.
        """
        # `self.log` would drop what falls between two of the trainer's logging steps.
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=step)

    def show(self, pl_module: pl.LightningModule, on_step: bool = True) -> None:
        """Show the last values to checkpoints and early stopping; the loggers have them already.

        Args:
            pl_module: The module whose hook is running.
            on_step: Whether that hook belongs to a training step.
        """
        pl_module.log_dict(
            self.values,
            logger=False,
            on_step=on_step,
            on_epoch=not on_step,
            # The values are of all processes; averaging equal ones only tells Lightning so.
            sync_dist=pl_module.trainer.world_size > 1,
            batch_size=1,
        )

    # -------------------------------------------------------------------------------- Lightning

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured first and in which passes, so that a resumed run compares."""
        return {
            "before": self.before,
            "values": self.values,
            "step": self._step,
            "layout": None if self.layout is None else self.layout.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and tensors.
        """
        self.before = state_dict["before"]
        self.values = state_dict["values"]
        self._step = state_dict["step"]
        layout = state_dict.get("layout")  # not there in a checkpoint of an older version
        self.layout = None if layout is None else PassLayout.from_dict(layout)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start anew for a stream of edits; a checkpoint's state comes after this.

        Args:
            trainer: The trainer.
            pl_module: The module that runs.
            stage: The stage.
        """
        if isinstance(pl_module, MeasurementDriver):
            self.reset()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model and measure it before the first step.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.

        Raises:
            ConfigError: If the language model or the tokenizer is not found.
        """
        if isinstance(pl_module, MeasurementDriver):
            return
        model = find_language_model(pl_module, self.model_attribute)
        self._found = model, find_tokenizer(self.tokenizer, trainer, pl_module)
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
        self._take(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Measure if enough steps have passed.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
            *args: Outputs, batch and its number.
            **kwargs: The same by name.
        """
        if self._found is None or not self.every_n_steps:
            return
        if trainer.global_step - self._step >= self.every_n_steps:
            self._take(trainer)
            self.show(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, unless this is the check before training.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
        """
        if self._found is None or not self.on_validation or trainer.sanity_checking:
            return
        if trainer.global_step != self._step:
            self._take(trainer)
        self.show(pl_module, on_step=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the model.

        Args:
            trainer: The trainer.
            pl_module: The module that was trained.
        """
        self._found = None

    def _take(self, trainer: pl.Trainer) -> None:
        assert self._found is not None  # set in on_fit_start
        model, tokenizer = self._found
        context = EvalContext(
            trainer.global_step,
            model,
            tokenizer,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            layout=self.layout,
        )
        found = self.observe(context)
        self.send(trainer, context.step)
        if self.directory is not None:
            rows = gather(found.rows)
            if trainer.is_global_zero:
                path = self.directory / f"step-{context.step:08d}.jsonl"
                write_rows(path, [{"step": context.step, **row} for row in rows])
