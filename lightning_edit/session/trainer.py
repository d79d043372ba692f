"""``EditTrainer``: a Lightning Trainer that also runs streams of edits."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, RichProgressBar

from lightning_edit.callbacks.schedule import publish
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.editors.checks import require_nothing_in_force
from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.judges import JudgeLike
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, LedgerError
from lightning_edit.session.checkpoint_io import use_plain_checkpoints
from lightning_edit.session.edit_session import EditSession
from lightning_edit.session.measurement_log import MeasurementLog
from lightning_edit.session.open import EditedRun, RunResults
from lightning_edit.session.progress_bar import EditProgressBar
from lightning_edit.session.record import results_of, settings_of
from lightning_edit.session.stream import EditStream, EvalPoint
from lightning_edit.session.transaction import Transaction
from lightning_edit.storage.atomic import write_error
from lightning_edit.storage.checkpoint_file import require_file
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.storage.run_lock import run_lock
from lightning_edit.types import Mode, Protocol

log = logging.getLogger(__name__)


class EditCheckpoint(ModelCheckpoint):
    """Checkpoint callback that keeps the newest state of a run as ``last.ckpt``.

    Args:
        dirpath: Folder of the checkpoint.
        every_n_batches: Edit batches between two checkpoints; work lost by a kill is redone.
    """

    def __init__(self, dirpath: str | Path, every_n_batches: int = 10) -> None:
        super().__init__(
            dirpath=dirpath,
            save_top_k=0,
            save_last=True,
            every_n_train_steps=every_n_batches,
            enable_version_counter=False,
        )

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint after a commit, to resume from."""
        with warnings.catch_warnings():
            # Lightning warns that under manual optimization it saves the state after the step.
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optim")
            super().on_train_batch_end(*args, **kwargs)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # Lightning writes to the system's temporary folder and moves; across disks a move is a copy
        # that a kill can interrupt, so the last step is an atomic rename in the same folder.
        part = Path(f"{filepath}.part")
        try:
            super()._save_checkpoint(trainer, str(part))
            part.replace(filepath)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else OSError(0, str(error).splitlines()[0])
            state = "Every committed edit is in the ledger."
            raise write_error(cause, Path(filepath), state) from error


def default_folder(editor: str) -> Path:
    """Return the default run folder, named after the time and the editor."""
    return Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{editor}"


_NO_CONDITIONS = Transaction()


class EditTrainer(pl.Trainer):
    """Lightning Trainer with :meth:`edit`, which runs a stream of edits.

    Loggers get every score of every evaluation point, at the number of edits as step; so does
    ``callback_metrics``, for ``ModelCheckpoint`` and ``EarlyStopping`` with a ``monitor``: they act
    after each evaluation point. Arguments: those of Lightning's Trainer.
    """

    _homeless: Sequence[ModelCheckpoint] = ()

    def edit(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        protocol: Protocol = "sequential",
        batch_size: int = 1,
        eval_at: list[EvalPoint] | None = None,
        run: str | None = None,
        modes: tuple[Mode, ...] = ("tf", "gen"),
        eval_batch_size: int = 64,
        checkpoint_every: int = 10,
        seed: int = 0,
        ckpt_path: str | None = None,
        judge: JudgeLike = "answer_first",
        max_new_tokens: int | None = None,
        transaction: Transaction = _NO_CONDITIONS,
        only_wrong: bool = False,
    ) -> RunResults:
        """Write a stream of edits into the editor's language model and evaluate each point.

        Args:
            model: An editor bound to a language model.
            datamodule: The stream of edits and its probes.
            protocol: single: each request, or case of several, alone on the pristine model, which
                is restored after it. batch: all at once. sequential: batch after batch on one
                model.
            batch_size: Requests per edit batch, those of one case counting as one. For single: they
                share the search, with the same result as alone.
            eval_at: Numbers of edits after which all edits so far are scored, such as [1, 10, end].
                Default: the end. The pristine model is always scored first.
            run: Folder of the run. Default: runs/<time>-<editor>.
            modes: tf: teacher forcing of the answers. gen: greedy generation.
            eval_batch_size: Rows per evaluation batch; no score depends on it.
            checkpoint_every: Edit batches between checkpoints.
            seed: Seed of everything random in the edits.
            ckpt_path: last: resume the run in the folder. A path: resume from that checkpoint.
            judge: What decides whether a generated text is right. answer_first: it starts with an
                accepted answer. exact: it is one and nothing else. Or a function of prompt,
                generated text and accepted answers (a dotted path), such as an LLM judge.
            max_new_tokens: Tokens to generate at most, up to the natural stop. Default: for each
                probe its longest accepted answer plus 8, rounded up to a multiple of 8.
            transaction: Conditions of every commit; an edit that misses one is dropped, and the
                stream goes on.
            only_wrong: Leave out a request, or case, that the model answers right when its turn
                comes, as in GRACE's paper; sequential or batch, with gen among the modes. What was
                left out is an event of results.json.

        Returns:
            The results, as in results.json.

        Raises:
            ConfigError: If only_wrong is asked for without generated answers, or of single.
            TypeError: If the model is not an editor, or the data not a data module of edits.
            LedgerError: If the folder holds another run.
            RunLockedError: If another process writes the folder.
        """
        if not isinstance(model, Editor) or not isinstance(datamodule, EditDataModule):
            raise TypeError(
                "edit needs an editor and a data module of edits, got "
                f"{type(model).__name__} and {type(datamodule).__name__}"
            )
        if self.world_size > 1:
            raise ConfigError(
                f"edit runs in one process, but the Trainer was given {self.world_size}; use "
                "--trainer.devices 1, and start one run per device to edit independent streams"
            )
        if only_wrong and (protocol == "single" or "gen" not in modes):
            raise ConfigError(
                "only_wrong leaves out what is answered right by then, so it needs the protocol "
                f"sequential or batch and gen among the modes, got {protocol} and {list(modes)}"
            )
        require_nothing_in_force(model)
        begin = time.perf_counter()
        datamodule.prepare_data()
        datamodule.setup("edit")
        # Errors in requests are raised before any work is done.
        requests = datamodule.edit_requests()
        model.on_stream(datamodule)
        stream = EditStream(requests, model.prompts, protocol, batch_size, seed)
        if model.needs_subject:
            for batch in stream.batches:
                model.subject_positions(batch)
        folder = RunFolder(run or default_folder(type(model).__name__))
        _checkpoint(folder, ckpt_path)  # before the lock makes a folder
        # Another thread's edits of this model would be taken for those of this run.
        with run_lock(folder.path), exclusive(model.language_model):
            evaluation = Evaluation(
                Scorer(model.language_model, model.prompts, eval_batch_size, modes, max_new_tokens),
                progress=self.progress_bar_callback is not None,
                judge=judge,
            )
            session = EditSession(
                model,
                stream,
                eval_at,
                folder,
                evaluation,
                resume=ckpt_path is not None,
                transaction=transaction,
                only_wrong=only_wrong,
            )
            _say_what_is_pristine(model, session.ledger, folder)
            self._prepare_for(session, checkpoint_every)
            for logger in self.loggers:
                logger.log_hyperparams(settings_of(session, datamodule))
            with self._as_stream(), warnings.catch_warnings():
                # A resumed run has its checkpoints there.
                warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
                self.fit(session, stream, ckpt_path=_checkpoint(folder, ckpt_path))
            # A run killed after its last batch has nothing left to fit; its journal is replayed
            # here.
            session.start()
            results = results_of(session, datamodule, time.perf_counter() - begin)
            folder.write_json(folder.results, results)
            publish(self, results["points"][-1]["metrics"])
            # Callbacks are in any order, but a report reads files that others write here.
            for callback in sorted(
                MeasurementLog.callbacks(self), key=lambda one: one.reads_others
            ):
                callback.on_results(folder)
            edited = EditedRun(folder.path, session.ledger, model.prompts, model)
            return RunResults(results, edited)

    def _prepare_for(self, session: EditSession, checkpoint_every: int) -> None:
        callbacks: list[pl.Callback] = list(self.callbacks)  # type: ignore[has-type]  # untyped there
        # Lightning's own checkpoint, or that of an earlier run of this trainer, in its folder.
        plain = [
            c
            for c in callbacks
            if isinstance(c, EditCheckpoint)
            or (type(c) is ModelCheckpoint and c.dirpath is None and c.monitor is None)
        ]
        bars = [c for c in callbacks if type(c) is RichProgressBar]
        # The summary counts the parameters to train; here there are none.
        summaries = [c for c in callbacks if isinstance(c, ModelSummary)]
        kept = [c for c in callbacks if c not in [*plain, *bars, *summaries]]
        if bars:
            kept.append(EditProgressBar())
        best = [c for c in kept if isinstance(c, ModelCheckpoint)]
        # Those without a folder of their own go with the run, also with the next one.
        self._homeless = [c for c in best if c.dirpath is None or c in self._homeless]
        for checkpoint in self._homeless:
            checkpoint.dirpath = str(session.folder.checkpoints)
        if all(checkpoint.monitor is not None for checkpoint in best):
            kept.append(EditCheckpoint(session.folder.checkpoints, checkpoint_every))
        self.callbacks = kept
        use_plain_checkpoints(self)

    @contextmanager
    def _as_stream(self) -> Iterator[None]:
        """Run one epoch from its first batch, whose evaluation points count as validations."""
        loop = self.fit_loop
        every: int = self.log_every_n_steps  # type: ignore[has-type]  # untyped there
        before = loop.max_epochs, every, self.check_val_every_n_epoch
        loop.max_epochs = 1
        # A stream may be shorter than the default logging interval; Lightning would warn.
        self.log_every_n_steps = min(every, 1)
        # Callbacks that monitor a score act after an evaluation, not at the end of the epoch.
        self.check_val_every_n_epoch = None
        # An earlier `fit` or `edit` of this trainer has left its position.
        loop.epoch_progress.reset()
        loop.epoch_loop.batch_progress.reset()
        loop.epoch_loop.scheduler_progress.reset()
        loop.epoch_loop.automatic_optimization.optim_progress.reset()
        loop.epoch_loop.manual_optimization.optim_step_progress.reset()
        loop.epoch_loop._batches_that_stepped = 0
        try:
            yield
        finally:
            loop.max_epochs, self.log_every_n_steps, self.check_val_every_n_epoch = before


def _say_what_is_pristine(editor: Editor, ledger: Ledger, folder: RunFolder) -> None:
    """Warn if the model holds edits of an earlier run, which this one takes for the original."""
    earlier, editor.last_ledger = editor.last_ledger, ledger
    if earlier is None or earlier.model is not ledger.model or not earlier.request_ids:
        return
    ids = earlier.request_ids
    log.warning(
        "the language model holds %d edits already (%s%s); %s takes the model with them as the "
        "pristine one: its baseline, undo and export start from there. To start from the original, "
        "undo them first, as in `results.edited.undo()`",
        len(ids),
        ", ".join(ids[:4]),
        ", …" if len(ids) > 4 else "",
        folder.path,
    )


def _checkpoint(folder: RunFolder, ckpt_path: str | None) -> str | None:
    """Return the checkpoint to resume from; ``None`` if the run was killed before its first one."""
    if ckpt_path is None:
        return None
    path = folder.last_checkpoint if ckpt_path == "last" else Path(ckpt_path)
    if path.exists():
        require_file(path, "give a checkpoint file, or 'last'")
        return str(path)
    if ckpt_path != "last":
        raise LedgerError(f"{ckpt_path} does not exist; give a checkpoint file, or 'last'")
    if not folder.has_run:
        raise LedgerError(
            f"{folder.path} holds no run to continue; give its folder with --run, or leave out "
            "--ckpt_path to start one"
        )
    return None
