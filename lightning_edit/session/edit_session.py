"""Edit session: the loop over a stream of edits, as a LightningModule in manual optimization."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_edit.callbacks.base import Commit, EvalContext, MeasurementDriver
from lightning_edit.callbacks.schedule import log_values
from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.editors.base import Editor
from lightning_edit.editors.hypernetwork.checkpoint import SESSION
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edit_loop import Stopwatch, find, find_alone, parts
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.summing import SNAPSHOT_EVERY
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import LedgerError, NotFiniteError, SolveError
from lightning_edit.functional.visible import visible
from lightning_edit.metrics import summarise
from lightning_edit.session.describe import describe_for_journal
from lightning_edit.session.integrity import RunIntegrity, check_history, history_record
from lightning_edit.session.measurement_log import MeasurementLog, ScoreLog, tell_monitors
from lightning_edit.session.shipping import keep_editor
from lightning_edit.session.stream import EditStream, EvalPoint, evaluation_points
from lightning_edit.session.transaction import Transaction
from lightning_edit.storage.jsonl import RowFile
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)
_STATE = SESSION


class CommitOptimizer(Optimizer):
    """Optimizer whose ``step`` runs the queued commits.

    Lightning counts optimizer steps; with commits as steps, ``global_step`` counts edit batches,
    and checkpoints, loggers, progress bars and ``ckpt_path`` work as usual.

    Args:
        parameters: At least one parameter; it is never changed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(list(parameters), {})
        self.queue: list[Callable[[], None]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss to return
        """Run the queued commits, in order.

        Args:
            closure: Not used; there is no loss to re-evaluate.
        """
        queue, self.queue = self.queue, []
        for commit in queue:
            commit()


class EditSession(MeasurementDriver):
    """Edit loop: commits a stream of requests with one editor and evaluates it.

    Args:
        editor: A bound editor.
        stream: The requests in batches, tokenised; its protocol is the session's.
        eval_at: Numbers of edits after which all edits so far are evaluated; ``single`` always
            evaluates each request right after its own edit.
        folder: Run folder.
        evaluation: Evaluation that scores the probes.
        resume: Whether to continue an unfinished run in ``folder``.
        transaction: Conditions that a commit must meet, else it is dropped.
        only_wrong: Whether a case whose answers are generated already is left out.
        ranks: The processes that run this session, each with the same model.
        snapshot_every: Commits between two snapshots of the ledger; 0: none is written.

    Raises:
        ConfigError: If the run does not score what the conditions need.
    """

    def __init__(
        self,
        editor: Editor,
        stream: EditStream,
        eval_at: Sequence[EvalPoint] | None,
        folder: RunFolder,
        evaluation: Evaluation,
        resume: bool = False,
        transaction: Transaction | None = None,
        only_wrong: bool = False,
        ranks: OneProcess = ALONE,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.transaction = transaction or Transaction()
        self.transaction.check(editor, evaluation.scorer.modes)
        self._refused = 0
        self._pristine_perplexity: float | None = None
        self.automatic_optimization = False
        self.editor = editor
        self.stream = stream
        self.protocol = stream.protocol
        self.points = evaluation_points(eval_at, stream.batches)
        self.folder = folder
        self.evaluation = evaluation
        self.resume = resume
        self.only_wrong = only_wrong
        self.seconds = {"edit": 0.0, "edit_cpu": 0.0, "evaluate": 0.0}
        self.rows = RowFile(folder.cases, ranks.first)
        self.measures = MeasurementLog(folder, ranks)
        self.score_log = ScoreLog(cumulative=self.protocol == "single")
        self.ledger = Ledger(
            editor.language_model, editor, folder.ledger, editor.runtime(), ranks, snapshot_every
        )
        assert self.ledger.journal is not None  # a session always has a folder
        self.integrity = RunIntegrity(folder, self.ledger.journal, self.rows, self.measures.rows)
        if not editor.edits_weights:
            scorer = evaluation.scorer
            scorer.responder = editor.responder(self.ledger.in_force, scorer.batch_size)
        # Lightning needs an optimizer, and an optimizer needs a parameter.
        self.position = nn.Parameter(torch.zeros(()))
        self._restored_state: dict[str, Any] | None = None
        self._started = False
        self._evaluated = False
        self._edits_done = 0
        self._finding = Stopwatch()

    # -------------------------------------------------------------------------------- Lightning

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer that commits, so that Lightning counts edit batches."""
        return CommitOptimizer([self.position])

    def on_fit_start(self) -> None:
        """Score the pristine baseline before the first commit."""
        with self.ranks.apart():
            self._begin()

    def _begin(self) -> None:
        self.editor.place_language_model()
        if self._restored_state is not None:
            covered = self.ledger.sums.covered(self._restored_state["lines"])
            self.integrity.check(self._restored_state, covered)  # before anything is written
        self.ledger.open(
            editor=type(self.editor).__name__,
            language_model=describe_for_journal(self.editor.language_model, self.editor.prompts),
            protocol=self.protocol,
        )
        self.ranks.first(lambda: keep_editor(self.folder, self.editor))
        self.evaluation.take_baseline(self.stream.requests, self.folder)
        pristine = self.evaluation.baseline.scores
        context = self._eval_context(0, self.stream.requests, pristine)
        self.transaction.check_baseline(pristine)
        self._pristine_perplexity = self.transaction.perplexity(context, baseline=True)
        self.measures.measure_pristine(self.trainer, context)

    def on_train_start(self) -> None:
        """Restore the edited model of the checkpoint, and log the pristine model's scores."""
        self.start()
        if self._restored_state is None:
            self.score_log.pristine(self.trainer, self.evaluation.baseline.scores)

    def start(self) -> None:
        """Replay the journal up to the checkpoint, once; later commits are redone.

        Raises:
            LedgerError: If the folder holds another run, or its files do not match.
        """
        if self._started:
            return
        with self.ranks.apart():
            self._replay()

    def _replay(self) -> None:
        journal = self.ledger.journal
        lines = 1 if self._restored_state is None else self._restored_state["lines"]
        if journal is not None and self.resume:
            journal.require_only({request.id for request in self.stream.requests}, lines)
        if self._restored_state is not None:
            self.rows.cut(self._restored_state["rows"])
            self.measures.start(self._restored_state["measures"])
            self.score_log.restore(self.rows)
            self.ledger.replay(self._restored_state["lines"], remember=False)
            self.seconds = dict(self._restored_state["seconds"])
        elif journal is not None and len(journal) > 1:
            if not self.resume:
                raise LedgerError(
                    f"{self.folder.path} holds a run already; continue it with --ckpt_path last, "
                    "or choose another folder with --run"
                )
            journal.check_truncation(1)
            self.rows.cut(0)
            self.measures.start()
            self.ledger.sums.truncate(1)
        else:
            self.rows.cut(0)
            self.measures.start()
        self._refused = sum(
            len(row["event"]["edits"])
            for row in self.measures.rows
            if row.get("event", {}).get("action") == "refuse"
        )
        self._started = True

    def end(self) -> None:
        """Leave the run folder to the first process, which may change it without the others."""
        journal = self.ledger.journal
        if journal is not None and self.ranks.is_first:
            journal.ranks = ALONE

    def training_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Find, commit and evaluate one batch of edits.

        Args:
            batch: The requests and their token ids.
            batch_idx: Its index in the stream.
        """
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, CommitOptimizer)  # set in configure_optimizers
        self._edits_done = self.stream.starts[batch_idx]
        write = self._write_alone if self.protocol == "single" else self._write
        optimizer.queue.append(partial(write, batch))
        with self.ranks.apart():
            self._step(batch_idx)

    def _step(self, batch_idx: int) -> None:
        lightning_optimizer = self.optimizers()
        lightning_optimizer.step()  # type: ignore[union-attr]  # one optimizer, see above
        if self.protocol != "single" and self._edits_done in self.points:
            self._evaluate(self._edits_done, self.stream.requests[: self._edits_done])
        elif self.protocol != "single" and self.trainer.should_stop:
            # A callback has stopped the stream, so this is its last evaluation point.
            self._evaluate(self._edits_done, self.stream.requests[: self._edits_done])
        self.stream.committed = batch_idx + 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let callbacks that monitor a score act after an evaluation.

        Args:
            outputs: Not used.
            batch: Not used.
            batch_idx: Not used.
        """
        if not self._evaluated:
            return
        self._evaluated = False
        for name in tell_monitors(self):
            event = {"action": "stop", "edits": [], "reason": "the monitored score ended the run"}
            self.measures.note(name, self._edits_done, event)

    def _write(self, batch: EditBatch) -> None:
        """Find and commit edits that stay in force."""
        wrong = self._still_wrong(batch) if self.only_wrong else batch
        if wrong is None:
            return
        for part in parts(self.editor, wrong):
            for one, delta in self._found(find(self.editor, part), part):
                self._commit(delta, one.requests)

    def _still_wrong(self, batch: EditBatch) -> EditBatch | None:
        """Leave out the cases that the model answers right now, and note them; ``None``: all."""
        with self._timer("evaluate"):
            bare = [replace(request, rephrases=(), probes=()) for request in batch.requests]
            scores = self.evaluation.scores(bare)
        right = {score.edit_id for score in scores if score.right_gen == 1.0}
        cases = batch.cases()
        wrong = [case for case in cases if not right.issuperset(case.ids)]
        left_out = [name for case in cases if right.issuperset(case.ids) for name in case.ids]
        if left_out:
            event = {"action": "skip", "edits": left_out, "reason": "answered right already"}
            self.measures.note(type(self).__name__, self._edits_done, event)
            self._edits_done += len(left_out)
        if not wrong:
            return None
        requests = tuple(request for case in wrong for request in case.requests)
        return EditBatch(requests, tuple(e for case in wrong for e in case.encoded), batch.seed)

    def _write_alone(self, batch: EditBatch) -> None:
        """Find, commit, evaluate and undo each case of a batch (``single``)."""
        for case, found in self._finding.over(find_alone(self.editor, batch)):
            for part, delta in self._found(found, case):
                self._commit(delta, part.requests)
            self._evaluate(1, case.requests)
            self._restore(case.requests)

    def _found(
        self, found: Iterator[tuple[EditBatch, Delta]], batch: EditBatch
    ) -> Iterator[tuple[EditBatch, Delta]]:
        """Yield what is found of a batch; a search that fails is refused like what it would find.

        Raises:
            NotFiniteError: If a search fails, and no callback continues without its edit.
                (Likewise ``SolveError``.)
        """
        items = self._finding.over(found)
        left = list(batch.requests)
        while True:
            try:
                part, delta = next(items)
            except StopIteration:
                return
            except (NotFiniteError, SolveError) as error:
                seconds = self._take_seconds(left)
                self._add_seconds(seconds)
                ids = tuple(request.id for request in left)
                self._tell(Delta(ids, {}), left, seconds, error)
                return
            left = left[len(part.requests) :]
            yield part, delta

    def _take_seconds(self, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Count requests as done, and return the seconds of the stages of finding their edit."""
        seconds = dict(self.editor.take_stages())
        wall, cpu = self._finding.take()
        self.seconds["edit"] += wall
        self.seconds["edit_cpu"] += cpu
        seconds["other"] = max(0.0, wall - sum(seconds.values()))
        self._edits_done += len(requests)
        return seconds

    def _add_seconds(self, seconds: Mapping[str, float]) -> None:
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def _tell(
        self,
        delta: Delta,
        requests: Sequence[EditRequest],
        seconds: Mapping[str, float],
        refusal: NotFiniteError | SolveError | None,
    ) -> None:
        """Tell the callbacks of a commit, or of its refusal."""
        with self._timer("measure"):
            commit = Commit(self._eval_context(self._edits_done, requests), delta, seconds, self)
            self.measures.notify(self.trainer, commit, refusal)

    def _commit(self, delta: Delta, requests: Sequence[EditRequest]) -> None:
        seconds = self._take_seconds(requests)
        self.ranks.require_same(
            f"the edit of {', '.join(delta.request_ids[:4])}", delta.checksums()
        )
        begin, refusal = time.perf_counter(), None
        try:
            reason = self._try(delta, requests)
        except NotFiniteError as error:
            refusal, reason = error, None
        seconds["commit"] = time.perf_counter() - begin
        self._add_seconds(seconds)
        if reason is not None:
            self._note_refusal(requests, reason)
            return
        self._tell(delta, requests, seconds, refusal)

    def _try(self, delta: Delta, requests: Sequence[EditRequest]) -> str | None:
        """Commit a delta that meets the conditions; return why it was dropped if it does not."""
        if not self.transaction.has_conditions:
            self.ledger.commit(delta, requests)
            return None
        if reason := self.transaction.refusal_by_size(delta):
            return reason
        with self.ledger.staged(delta, requests) as trial:
            scores = self.evaluation.scores(requests) if self.transaction.modes else []
            perplexity = self.transaction.perplexity(self._eval_context(self._edits_done, requests))
            reason = self.transaction.refusal(
                summarise(scores), perplexity, self._pristine_perplexity
            )
            if reason is None:
                trial.commit()
        return reason

    def _note_refusal(self, requests: Sequence[EditRequest], reason: str) -> None:
        """Write a dropped edit into the run's events, and say it."""
        ids = [request.id for request in requests]
        event = {"action": "refuse", "edits": ids, "reason": reason}
        self.measures.note(type(self.transaction).__name__, self._edits_done, event)
        self._refused += len(ids)
        log_values(self.trainer, {"transaction/refused": float(self._refused)}, self._edits_done)
        named = visible(", ".join(ids[:4])) + (", …" if len(ids) > 4 else "")
        log.warning("The edit of %s was refused: %s", named, reason)

    def _restore(self, case: Sequence[EditRequest]) -> None:
        """Undo the edits of a case that no callback has undone."""
        self.ledger.undo([request.id for request in case if self.ledger.holds(request.id)])

    @contextmanager
    def _timer(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin

    def _evaluate(self, after: int, requests: Sequence[EditRequest]) -> None:
        with self._timer("evaluate"):
            scores = self.evaluation.scores(requests)
            self.rows.append({"after": after, **score.to_row()} for score in scores)
        with self._timer("measure"):
            self.measures.measure(
                self, self._eval_context(after, requests, scores), self._edits_done
            )
        self.score_log.point(self, scores, self._edits_done)
        self._evaluated = True

    def _eval_context(
        self, after: int, requests: Sequence[EditRequest], scores: Sequence[ProbeScore] = ()
    ) -> EvalContext:
        editor = self.editor
        alone = self.protocol == "single"
        return EvalContext(
            after,
            editor.language_model,
            editor.tokenizer,
            requests,
            scores,
            self.ledger,
            alone,
            layout=self.evaluation.scorer.layout,
            responder=None if editor.edits_weights else self.evaluation.scorer.responder,
            prompts=editor.prompts,
        )

    # ------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save position and editor history; the journal already holds the deltas.

        Args:
            checkpoint: Lightning's dictionary.
        """
        journal = self.ledger.journal
        assert journal is not None  # a session always has a folder
        checkpoint[_STATE] = {
            "lines": len(journal),
            "head": journal.head,
            "rows": self.rows.size,
            "measures": self.measures.rows.size,
            "seconds": dict(self.seconds),
            "protocol": self.protocol,
            "stream": self.stream.digest,
            "only_wrong": self.only_wrong,
            "hashes": self.integrity.hashes(),
        }
        before = set(checkpoint)
        self.editor.on_save_checkpoint(checkpoint)
        added = sorted(set(checkpoint) - before)
        checkpoint[_STATE]["history"] = history_record(checkpoint, added)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load position and editor history from a checkpoint.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            LedgerError: If it is not a checkpoint of this stream of edits.
        """
        state = checkpoint.get(_STATE)
        if state is None:
            raise LedgerError(
                "this checkpoint is not from `lightning-edit edit`; a trained editor is loaded "
                "with --model.checkpoint, and --ckpt_path continues an interrupted run"
            )
        if state["stream"] != self.stream.digest or state["protocol"] != self.protocol:
            raise LedgerError(
                f"the checkpoint was taken with protocol {state['protocol']} on other requests or "
                f"another batch size than this run (protocol {self.protocol}); "
                "resume with the config.yaml of the run"
            )
        if (began := state.get("only_wrong", False)) != self.only_wrong:
            raise LedgerError(
                f"the run began with only_wrong {began} and goes on with {self.only_wrong}, which "
                "would leave out other edits; resume with the config.yaml of the run"
            )
        check_history(checkpoint, state.get("history"))
        self._restored_state = state
        # Without the run's own state it is a checkpoint as the editor saves one itself.
        own = {key: value for key, value in checkpoint.items() if key != _STATE}
        self.editor.on_load_checkpoint(own)
