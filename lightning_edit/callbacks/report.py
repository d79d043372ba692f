"""Report callback: the HTML page of a run, written when it ends."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from lightning_edit.callbacks.base import (
    EvalContext,
    Measurement,
    MeasurementCallback,
    MeasurementDriver,
)
from lightning_edit.exceptions import ConfigError, LightningEditError
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.run_folder import RunFolder

log = logging.getLogger(__name__)


class ReportCallback(MeasurementCallback):
    """HTML report or JSON summary of all measurements, written at the end of a run.

    Under ``EditTrainer`` it is the self-contained HTML page of ``lightning-edit report``. In other
    training, and in ``validate`` and ``test``, it is ``measures.json`` in ``directory``: the values
    of all measurement callbacks of the Trainer before the first step and after the last.

    Args:
        file: Name of the page in the run's folder.
        directory: Folder for the JSON file of other training; by default the Trainer's.
    """

    reads_others: ClassVar[bool] = True

    def __init__(self, file: str = "report.html", directory: str | None = None) -> None:
        super().__init__(on_validation=False)
        self.file = file
        self.folder = None if directory is None else Path(directory)

    def measure(self, context: EvalContext) -> Measurement:
        """Return an empty measurement: the report shows those of other callbacks.

        Args:
            context: The model.
        """
        return Measurement({})

    def on_results(self, folder: RunFolder) -> None:
        """Write the HTML report; a failure is logged only, since the run itself is finished.

        Args:
            folder: The run's folder, with ``results.json``.
        """
        out = folder.path / self.file
        try:
            # The page needs the optional extra `report`, which a run without it does not.
            from lightning_edit.report.page import write_page

            write_page([folder.path], out)
        except LightningEditError as error:
            log.warning("no page was written: %s", error)
        else:
            log.info("page of the run: %s", out)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that another callback measures, so that there is something to report.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that is trained.

        Raises:
            ConfigError: If no other callback measures.
        """
        if not isinstance(pl_module, MeasurementDriver) and not _measurement_callbacks(trainer):
            raise ConfigError(
                "ReportCallback reports what other callbacks measure; give the Trainer one of "
                "them, such as EditEvaluation"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``measures.json`` after a training without ``EditTrainer``.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was trained.
        """
        self._write_measures(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``measures.json`` after ``validate``.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was validated.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            self._write_measures(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``measures.json`` after ``test``.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that was tested.
        """
        self._write_measures(trainer, pl_module)

    def _write_measures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, MeasurementDriver) or not trainer.is_global_zero:
            return
        record: dict[str, Any] = {
            "module": type(pl_module).__name__,
            "steps": trainer.global_step,
            "before": {
                k: v
                for other in _measurement_callbacks(trainer)
                for k, v in (other.before or {}).items()
            },
            "after": {
                k: v for other in _measurement_callbacks(trainer) for k, v in other.values.items()
            },
        }
        folder = self.folder or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / "measures.json", text.encode())


def _measurement_callbacks(trainer: pl.Trainer) -> list[MeasurementCallback]:
    listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped there
    return [
        one
        for one in listed
        if isinstance(one, MeasurementCallback) and not isinstance(one, ReportCallback)
    ]
