"""Measurement log of a run: calls the measurement callbacks and writes ``measures.jsonl``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_edit.callbacks.base import Commit, EvalContext, MeasurementCallback
from lightning_edit.callbacks.schedule import log_values, publish
from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import NotFiniteError, SolveError
from lightning_edit.metrics.aspects import AspectScores, compute_all
from lightning_edit.metrics.criteria import CriterionScores
from lightning_edit.session.points import is_count
from lightning_edit.storage.jsonl import RowFile
from lightning_edit.storage.run_folder import RunFolder


class MeasurementLog:
    """Measurement callbacks of one run, and their log ``measures.jsonl``.

    A line has the callback's name (``by``), the position in the stream (``after``; under the
    protocol ``single`` also the edits in force, ``edits``), and ``values`` and ``rows``, or an
    ``event`` such as a rollback. Values that are ``cumulative`` cover all edits so far.

    Args:
        folder: The run's folder.
        ranks: The processes that measure the same; what differs between them, such as seconds, is
            that of rank 0.
    """

    def __init__(self, folder: RunFolder, ranks: OneProcess = ALONE) -> None:
        self.ranks = ranks
        self.rows = RowFile(folder.measures, ranks.first)
        self._pristine_rows: list[dict[str, Any]] = []

    @staticmethod
    def callbacks(trainer: pl.Trainer) -> list[MeasurementCallback]:
        """Return the measurement callbacks of a trainer."""
        listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped there
        return [callback for callback in listed if isinstance(callback, MeasurementCallback)]

    def measure_pristine(self, trainer: pl.Trainer, context: EvalContext) -> None:
        """Measure the pristine baseline, for each callback that has none yet.

        Args:
            trainer: The trainer with the callbacks.
            context: Context of the pristine model.
        """
        for callback in self.callbacks(trainer):
            if callback.before is None:
                self._pristine_rows.append(self._row(callback, context))
                callback.send(trainer, 0)

    def start(self, size: int = 0) -> None:
        """Truncate the log to its size at a checkpoint, and append the pristine measurements.

        Args:
            size: Bytes to keep; 0 for a new run.
        """
        self.rows.cut(size)
        if self._pristine_rows:
            self.rows.append(self._pristine_rows)
            self._pristine_rows = []

    def measure(self, pl_module: pl.LightningModule, context: EvalContext, step: int) -> None:
        """Measure an evaluation point with every callback, and log the values.

        Args:
            pl_module: The session.
            context: Context of the current model.
            step: Number of edits so far, for the loggers.
        """
        for callback in self.callbacks(pl_module.trainer):
            self.rows.append([self._row(callback, context)])
            callback.send(pl_module.trainer, step)
            callback.show(pl_module)

    def notify(
        self, trainer: pl.Trainer, commit: Commit, refusal: NotFiniteError | SolveError | None
    ) -> None:
        """Notify every callback of a commit, or of its refusal.

        Args:
            trainer: The trainer with the callbacks.
            commit: The commit.
            refusal: The error if the commit was refused.

        Raises:
            NotFiniteError: If it was refused, and no callback continues without it. (Likewise
                ``SolveError``.)
        """
        callbacks = self.callbacks(trainer)
        if refusal is None:
            for callback in callbacks:
                callback.on_commit(commit)
        elif not any(callback.on_refused(commit, refusal) for callback in callbacks):
            raise refusal

    def add(self, by: str, after: int, values: Mapping[str, float]) -> None:
        """Append values that were measured between two evaluations.

        Args:
            by: Class name of the callback.
            after: Number of edits so far.
            values: Values by name.
        """
        self.rows.append([{"by": by, "after": after, "values": self.ranks.same(dict(values))}])

    def note(self, by: str, after: int, event: Mapping[str, Any]) -> None:
        """Append an event, such as a rollback or stop.

        Args:
            by: Class name of the callback that caused it.
            after: Number of edits so far.
            event: Plain containers.
        """
        event = self.ranks.same(dict(event))
        self.rows.append([{"by": by, "after": after, "event": event}])

    def _row(self, callback: MeasurementCallback, context: EvalContext) -> dict[str, Any]:
        first = callback.before is None
        found = callback.observe(context)
        values, rows = self.ranks.same((dict(found.values), list(found.rows)))
        callback.values = values
        if first:
            callback.before = values
        row: dict[str, Any] = {"by": type(callback).__name__, "after": context.step}
        if context.single_edit and context.step:
            row["edits"] = [request.id for request in context.requests]
        if callback.cumulative:
            row["cumulative"] = True
        return row | {"values": values, "rows": rows}


class ScoreLog:
    """Scores of the evaluation points, for the loggers and for callbacks that monitor a score.

    A point's scores go to every logger at the number of edits so far as step, and to
    ``trainer.callback_metrics``, under their names in ``results.json``. Under the protocol
    ``single`` every request is scored after its own edit, and the log has the means over the
    requests so far, of which the last are those of ``results.json``.

    Args:
        cumulative: Whether to log means over all scores so far (``single``).
    """

    def __init__(self, cumulative: bool) -> None:
        self.cumulative = cumulative
        self._metrics = self._new()

    @staticmethod
    def _new() -> list[AspectScores | CriterionScores]:
        return [AspectScores(sync_on_compute=False), CriterionScores(sync_on_compute=False)]

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the scores of a run that is resumed.

        Args:
            rows: Rows of its ``cases.jsonl``.
        """
        if self.cumulative:
            self._values([ProbeScore.from_row(row) for row in rows])

    def pristine(self, trainer: pl.Trainer, scores: Sequence[ProbeScore]) -> None:
        """Log the scores of the pristine model, as step 0.

        Args:
            trainer: The trainer.
            scores: Outcomes of every probe.
        """
        values = _without_counts(compute_all(self._new(), scores))
        log_values(trainer, values, 0)
        publish(trainer, values)

    def point(self, pl_module: pl.LightningModule, scores: Sequence[ProbeScore], step: int) -> None:
        """Log the scores of an evaluation point.

        Args:
            pl_module: The session, in its training step.
            scores: Outcomes of whole cases.
            step: Number of edits so far.
        """
        values = self._values(scores)
        log_values(pl_module.trainer, values, step)
        pl_module.log_dict(values, logger=False, on_step=True, on_epoch=False, batch_size=1)

    def _values(self, scores: Sequence[ProbeScore]) -> dict[str, float]:
        if not self.cumulative:
            self._metrics = self._new()
        return _without_counts(compute_all(self._metrics, scores))


def tell_monitors(pl_module: pl.LightningModule) -> list[str]:
    """Tell early stopping and checkpoint callbacks that an evaluation has ended.

    Args:
        pl_module: The session, after a batch.

    Returns:
        Class names of the callbacks that stopped the run.
    """
    trainer = pl_module.trainer
    stopped: list[str] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # untyped there
        if isinstance(callback, EarlyStopping | ModelCheckpoint):
            before = trainer.should_stop
            callback.on_validation_end(trainer, pl_module)
            if trainer.should_stop and not before:
                stopped.append(type(callback).__name__)
    return stopped


def _without_counts(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not is_count(name)}
