"""Who measures a stream of edits, and the file that keeps what was found."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_edit.callbacks.base import Commit, EvalContext, MeasurementCallback
from lightning_edit.exceptions import NotFiniteError
from lightning_edit.storage.jsonl import RowFile
from lightning_edit.storage.run_folder import RunFolder


class MeasurementLog:
    """The measuring callbacks of one run, and ``measures.jsonl``.

    A line names the callback (``by``), where the stream stood (``after``, and in the protocol
    ``single`` whose edit was in force, ``edits``), and holds ``values`` and ``rows``, or an
    ``event`` such as a rollback. Values that are ``cumulative`` are of all edits so far.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.rows = RowFile(folder.measures)
        self._pristine: list[dict[str, Any]] = []

    @staticmethod
    def callbacks(trainer: pl.Trainer) -> list[MeasurementCallback]:
        """Return the callbacks of a trainer that measure."""
        listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped there
        return [callback for callback in listed if isinstance(callback, MeasurementCallback)]

    def pristine(self, trainer: pl.Trainer, context: EvalContext) -> None:
        """Measure the model before the first edit, for each callback that has not done so.

        Args:
            trainer: Whose callbacks.
            context: The pristine model.
        """
        for callback in self.callbacks(trainer):
            if callback.before is None:
                self._pristine.append(_row(callback, context))
                callback.send(trainer, 0)

    def start(self, size: int = 0) -> None:
        """Cut the file back to a checkpoint, and write down what the pristine model gave.

        Args:
            size: Bytes to keep; 0 for a new run.
        """
        self.rows.cut(size)
        if self._pristine:
            self.rows.append(self._pristine)
            self._pristine = []

    def take(self, pl_module: pl.LightningModule, context: EvalContext, step: int) -> None:
        """Measure with every callback.

        Args:
            pl_module: The session.
            context: The model.
            step: Edits so far, for the loggers.
        """
        for callback in self.callbacks(pl_module.trainer):
            self.rows.append([_row(callback, context)])
            callback.send(pl_module.trainer, step)
            callback.show(pl_module)

    def notify(self, trainer: pl.Trainer, commit: Commit, refusal: NotFiniteError | None) -> None:
        """Show a commit to every callback.

        Args:
            trainer: Whose callbacks.
            commit: The commit.
            refusal: Why it was not written, if it was not.

        Raises:
            NotFiniteError: If it was not written, and no callback goes on without it.
        """
        callbacks = self.callbacks(trainer)
        if refusal is None:
            for callback in callbacks:
                callback.on_commit(commit)
        elif not any(callback.on_refused(commit, refusal) for callback in callbacks):
            raise refusal

    def add(self, by: str, after: int, values: Mapping[str, float]) -> None:
        """Write down what was measured between two evaluations.

        Args:
            by: Name of the class that measured.
            after: Where the stream stood.
            values: Numbers by name.
        """
        self.rows.append([{"by": by, "after": after, "values": dict(values)}])

    def note(self, by: str, after: int, event: Mapping[str, Any]) -> None:
        """Write down something that happened.

        Args:
            by: Name of the class that made it happen.
            after: Where the stream stood.
            event: Plain containers.
        """
        self.rows.append([{"by": by, "after": after, "event": dict(event)}])


def _row(callback: MeasurementCallback, context: EvalContext) -> dict[str, Any]:
    found = callback.observe(context)
    row: dict[str, Any] = {"by": type(callback).__name__, "after": context.step}
    if context.single_edit and context.step:
        row["edits"] = [request.id for request in context.requests]
    if callback.cumulative:
        row["cumulative"] = True
    return row | {"values": dict(found.values), "rows": list(found.rows)}
