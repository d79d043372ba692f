"""``EditTrainer``: a Lightning Trainer that also runs streams of edits."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, RichProgressBar

from lightning_edit.callbacks.schedule import publish
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.editors.base import Editor
from lightning_edit.editors.checks import require_nothing_in_force
from lightning_edit.edits.exclusive import exclusive
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.summing import SNAPSHOT_EVERY
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.judges import JudgeLike
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, LedgerError, LightningEditError
from lightning_edit.session.checkpoint_io import use_plain_checkpoints
from lightning_edit.session.edit_session import EditSession
from lightning_edit.session.measurement_log import MeasurementLog
from lightning_edit.session.open import EditedRun, RunResults
from lightning_edit.session.progress_bar import EditProgressBar
from lightning_edit.session.ranks import on_every_rank, shared_work
from lightning_edit.session.record import results_of, settings_of
from lightning_edit.session.stream import EditStream, EvalPoint
from lightning_edit.session.transaction import Transaction
from lightning_edit.session.unwritten import say_unwritten
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
        ranks: The processes of the run; the first one writes.
    """

    def __init__(
        self, dirpath: str | Path, every_n_batches: int = 10, ranks: OneProcess = ALONE
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            save_top_k=0,
            save_last=True,
            every_n_train_steps=every_n_batches,
            enable_version_counter=False,
        )
        self.ranks = ranks

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
            self.ranks.first(lambda: _rename(part, Path(filepath)))
        except (OSError, RuntimeError) as error:
            if self.ranks.is_first:
                part.unlink(missing_ok=True)
            if isinstance(error, LightningEditError):
                raise
            cause = error if isinstance(error, OSError) else OSError(0, str(error).splitlines()[0])
            state = "Every committed edit is in the ledger."
            raise write_error(cause, Path(filepath), state) from error


def _rename(part: Path, path: Path) -> None:
    part.replace(path)


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
        rank_timeout: float = 1800.0,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> RunResults:
        """Write a stream of edits into the editor's language model and evaluate each point.

        With ``strategy="ddp"`` several processes share the work, each with the whole model;
        weights, scores and run folder are those of one process (docs/distributed.md).

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
            seed: Seed of what each edit draws. What the editor draws once, such as context
                templates, has the editor's own ``seed``; ``--seed_everything`` shifts both.
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
            rank_timeout: Seconds that a process waits for the others of a run in several processes
                before it ends; longer than the longest search, scoring or write.
            snapshot_every: Commits between two snapshots of the edited weights' totals, from which
                a resume, an undo and `EditedModel.open` begin; 0: none. Each takes 8 bytes a value
                of every edited weight; some 3 + log2(commits / snapshot_every) are kept.

        Returns:
            The results, as in results.json; every process has them.

        Raises:
            ConfigError: If only_wrong is asked for without generated answers, or of single, or a
                number is out of its range.
            TypeError: If the model is not an editor, or the data not a data module of edits.
            LedgerError: If the folder holds another run.
            RunLockedError: If another process writes the folder.
            RankLostError: If a process of the run has ended or hangs.
            RanksDifferError: If the processes of the run have computed different edits.
        """
        if not isinstance(model, Editor) or not isinstance(datamodule, EditDataModule):
            raise TypeError(
                "edit needs an editor and a data module of edits, got "
                f"{type(model).__name__} and {type(datamodule).__name__}"
            )
        if snapshot_every < 0:
            raise ConfigError(
                f"snapshot_every must be 0 (no snapshot) or more commits, got {snapshot_every}"
            )
        if only_wrong and (protocol == "single" or "gen" not in modes):
            raise ConfigError(
                "only_wrong leaves out what is answered right by then, so it needs the protocol "
                f"sequential or batch and gen among the modes, got {protocol} and {list(modes)}"
            )
        require_nothing_in_force(model)
        editor, data = model, datamodule

        def work(ranks: OneProcess) -> RunResults:
            begin = time.perf_counter()
            stream = _stream_of(editor, data, protocol, batch_size, seed)
            folder = RunFolder(ranks.same(run or str(default_folder(type(editor).__name__))))
            ranks.first(lambda: _checkpoint(folder, ckpt_path))  # before the lock makes a folder
            with ExitStack() as held:
                ranks.first(lambda: held.enter_context(run_lock(folder.path)) or 0)
                # Another thread's edits of this model would be taken for those of this run.
                held.enter_context(exclusive(editor.language_model))
                held.enter_context(shared_work(editor, ranks))
                evaluation = Evaluation(
                    Scorer(
                        editor.language_model,
                        editor.prompts,
                        eval_batch_size,
                        modes,
                        max_new_tokens,
                    ),
                    progress=self.progress_bar_callback is not None,
                    judge=judge,
                    ranks=ranks,
                )
                session = EditSession(
                    editor,
                    stream,
                    eval_at,
                    folder,
                    evaluation,
                    resume=ckpt_path is not None,
                    transaction=transaction,
                    only_wrong=only_wrong,
                    ranks=ranks,
                    snapshot_every=snapshot_every,
                )
                ranks.wait()  # all have read the folder before one writes into it
                return self._run_stream(session, data, checkpoint_every, ckpt_path, begin)

        return on_every_rank(self, rank_timeout, work)

    def _run_stream(
        self,
        session: EditSession,
        data: EditDataModule,
        checkpoint_every: int,
        ckpt_path: str | None,
        begin: float,
    ) -> RunResults:
        """Run a session that is ready, in each of its processes, and write its results."""
        folder, ranks = session.folder, session.ranks
        _say_what_is_pristine(session.editor, session.ledger, folder)
        self._prepare_for(session, checkpoint_every)
        for logger in self.loggers:
            logger.log_hyperparams(settings_of(session, data))
        start_from = ranks.first(lambda: _checkpoint(folder, ckpt_path))
        with self._as_stream(), warnings.catch_warnings():
            # A resumed run has its checkpoints there.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            self.fit(session, session.stream, ckpt_path=start_from)
        # A run killed after its last batch has nothing left to fit; its journal is replayed here.
        session.start()

        def conclude() -> dict[str, Any]:
            results = results_of(session, data, time.perf_counter() - begin)
            folder.write_json(folder.results, results)
            publish(self, results["points"][-1]["metrics"])
            ends = session.editor.prompts.form.end_answers
            say_unwritten(session.rows, session.editor, ends)
            # Callbacks are in any order, but a report reads files that others write here.
            for callback in sorted(
                MeasurementLog.callbacks(self), key=lambda one: one.reads_others
            ):
                callback.on_results(folder)
            return results

        results = ranks.first(conclude)
        if not ranks.is_first:
            publish(self, results["points"][-1]["metrics"])
        session.end()
        editor = session.editor
        return RunResults(results, EditedRun(folder.path, session.ledger, editor.prompts, editor))

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
            kept.append(EditCheckpoint(session.folder.checkpoints, checkpoint_every, session.ranks))
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


def _stream_of(
    editor: Editor, data: EditDataModule, protocol: Protocol, batch_size: int, seed: int
) -> EditStream:
    """Read and check the requests of a stream, before any work is done."""
    data.prepare_data()
    data.setup("edit")
    requests = data.edit_requests()
    editor.on_stream(data)
    stream = EditStream(requests, editor.prompts, protocol, batch_size, seed)
    if editor.needs_subject:
        for batch in stream.batches:
            editor.subject_positions(batch)
    return stream


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
