"""The page of a run, written when it ends."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl

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
    """Writes what was measured when a run ends.

    In our loop that is the self-contained HTML page of ``lightning-edit report``. In other
    trainings it is ``measures.json`` in ``directory``: the numbers of all measuring callbacks of
    the Trainer before the first step and after the last.

    Args:
        file: Name of the page in the run's folder.
        directory: Folder for the file of other trainings; by default the Trainer's.
    """

    reads_others: ClassVar[bool] = True

    def __init__(self, file: str = "report.html", directory: str | None = None) -> None:
        super().__init__(on_validation=False)
        self.file = file
        self.folder = None if directory is None else Path(directory)

    def measure(self, context: EvalContext) -> Measurement:
        """Return nothing: it reports what others measure.

        Args:
            context: The model.
        """
        return Measurement({})

    def on_results(self, folder: RunFolder) -> None:
        """Write the page. A run whose page cannot be written is still a finished run.

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
        """Check that there is something to report.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.

        Raises:
            ConfigError: If no other callback measures.
        """
        if not isinstance(pl_module, MeasurementDriver) and not _others(trainer):
            raise ConfigError(
                "ReportCallback reports what other callbacks measure; give the Trainer one of "
                "them, such as EditEvaluation"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the numbers of a training that is not ours.

        Args:
            trainer: The trainer.
            pl_module: The module that was trained.
        """
        if isinstance(pl_module, MeasurementDriver) or not trainer.is_global_zero:
            return
        record: dict[str, Any] = {
            "module": type(pl_module).__name__,
            "steps": trainer.global_step,
            "before": {k: v for other in _others(trainer) for k, v in (other.before or {}).items()},
            "after": {k: v for other in _others(trainer) for k, v in other.values.items()},
        }
        folder = self.folder or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / "measures.json", text.encode())


def _others(trainer: pl.Trainer) -> list[MeasurementCallback]:
    listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped there
    return [
        one
        for one in listed
        if isinstance(one, MeasurementCallback) and not isinstance(one, ReportCallback)
    ]
