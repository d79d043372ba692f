"""Base class of evaluation callbacks, for a stream of edits or for any Lightning training.

A :class:`MeasurementCallback` subclass defines the values. The session of ``EditTrainer.edit``
measures the pristine model and every evaluation point; in any other Trainer the hooks of
:mod:`~lightning_edit.callbacks.schedule` measure.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from lightning_edit.callbacks.context import Commit, EvalContext, Measurement, MeasurementDriver
from lightning_edit.callbacks.schedule import MeasurementSchedule
from lightning_edit.distributed.sharding import gather
from lightning_edit.exceptions import ConfigError, NotFiniteError, SolveError
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.storage.run_folder import RunFolder

__all__ = [
    "Commit",
    "EvalContext",
    "Measurement",
    "MeasurementCallback",
    "MeasurementDriver",
    "gather",
]


class MeasurementCallback(MeasurementSchedule, ABC):
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
        on_validation: Measure at the end of every validation; in a training without validation
            batches at the end of every epoch. ``validate`` and ``test`` always measure.
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
        every = self.every_n_steps
        self.require(every_n_steps=(every is None or every >= 1, "1 or more, or None"))

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

    def on_refused(self, commit: Commit, error: NotFiniteError | SolveError) -> bool:
        """Decide whether the stream continues without a non-finite edit; ``EditTrainer`` only.

        Args:
            commit: The commit that was refused; the model is unchanged. Its delta is empty where
                the editor found none.
            error: The reason.
        """
        return False

    def on_results(self, folder: RunFolder) -> None:
        """Run after ``results.json`` of a finished run is written; ``EditTrainer`` only.

        Args:
            folder: The run's folder, with ``results.json``.
        """

    def require(self, **wrong: tuple[bool, str]) -> None:
        """Refuse arguments that are out of range, all of them in one error.

        Args:
            **wrong: By argument, whether its value is allowed, and what is.

        Raises:
            ConfigError: If one is not allowed.
        """
        said = [
            f"`{name}` must be {expected}, got {getattr(self, name)!r}"
            for name, (allowed, expected) in wrong.items()
            if not allowed
        ]
        if said:
            raise ConfigError(f"{type(self).__name__}: {'; '.join(said)}")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forget_run" in vars(cls):
            raise TypeError(f"{cls.__name__}.forget_run is called `reset` now; rename the method")

    def reset(self) -> None:
        """Reset the state, so that one callback can watch several runs and trainings."""
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
