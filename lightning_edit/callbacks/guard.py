"""Keeps a stream of edits, or a training, from destroying the model."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl

from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.callbacks.collapse import read_perplexity
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, NotFiniteError
from lightning_edit.functional.measures import mean
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)


class CollapseGuard(MeasurementCallback):
    """Checks a model after commits; what breaks a bound is taken back, or ends the run.

    In our loop a commit that breaks a bound is undone and the stream goes on (``rollback``), or the
    stream ends (``stop``); so is an edit that is not finite, which is never written at all. The
    journal, ``results.json`` (``events``) and the table at the end name each. In any other Trainer
    the training ends. A run that is resumed decides as the uninterrupted one.

    Measured are ``collapse/rolled_back``, the edits that were taken back so far, and
    ``collapse/checks``.

    Args:
        max_perplexity_ratio: Largest perplexity on fixed texts over the pristine model's; ``None``:
            no bound. 2 is our choice.
        max_perplexity: Largest perplexity; ``None``: no bound.
        min_reliability: Smallest share of the requests since the last check whose answer is right,
            teacher forced; ``None``: no bound. Our loop.
        min_earlier: The same of up to 20 earlier requests in force, spread evenly over them.
        action: What happens where a bound is broken.
        every_n_commits: Commits between two checks. Where a check fails, commits since the last one
            are taken back from the newest on, until the bounds hold.
        texts: As for :class:`~lightning_edit.callbacks.CollapseCallback`.
        limit: How many of them.
        max_tokens: Texts are cut to so many tokens.
        batch_size: Texts that go through the model together.
        options: As for :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Raises:
        ConfigError: If there is no bound, or a number is out of its range.
    """

    cumulative: ClassVar[bool] = True

    def __init__(
        self,
        max_perplexity_ratio: float | None = 2.0,
        max_perplexity: float | None = None,
        min_reliability: float | None = None,
        min_earlier: float | None = None,
        action: Literal["rollback", "stop"] = "rollback",
        every_n_commits: int = 1,
        texts: str | list[str] | None = None,
        limit: int = 50,
        max_tokens: int = 128,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        bounds = (max_perplexity_ratio, max_perplexity, min_reliability, min_earlier)
        if all(bound is None for bound in bounds):
            raise ConfigError(
                "CollapseGuard has no bound; give `max_perplexity_ratio`, `max_perplexity`, "
                "`min_reliability` or `min_earlier`"
            )
        if action not in ("rollback", "stop") or every_n_commits < 1:
            raise ConfigError(
                "CollapseGuard needs action rollback or stop and every_n_commits of at least 1; "
                f"got {action!r} and {every_n_commits}"
            )
        self.max_perplexity_ratio = max_perplexity_ratio
        self.max_perplexity = max_perplexity
        self.min_reliability = min_reliability
        self.min_earlier = min_earlier
        self.action = action
        self.every_n_commits = every_n_commits
        self.texts = texts
        self.limit = limit
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self.pristine = 0.0
        self.rolled_back = 0
        self.checks = 0
        self.stopped = False
        self._commits = 0
        #: Requests of each commit that was not checked yet.
        self._open: list[list[str]] = []

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what happens next."""
        return super().state_dict() | {
            "pristine": self.pristine,
            "rolled_back": self.rolled_back,
            "checks": self.checks,
            "stopped": self.stopped,
            "commits": self._commits,
            "open": self._open,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        self.pristine = state_dict["pristine"]
        self.rolled_back = state_dict["rolled_back"]
        self.checks = state_dict["checks"]
        self.stopped = state_dict["stopped"]
        self._commits = state_dict["commits"]
        self._open = [list(ids) for ids in state_dict["open"]]

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._reset()

    # -------------------------------------------------------------------------------- measuring

    def measure(self, context: EvalContext) -> Measurement:
        """Measure the pristine model; later, say what was done so far.

        Args:
            context: The model.
        """
        if self.before is None:
            self.pristine = self._perplexity(context)
        elif context.ledger is None and (reason := self._too_high(context)):
            self.stopped = True
            log.warning("CollapseGuard ends the training at step %d: %s", context.step, reason)
        counts = {"rolled_back": self.rolled_back, "checks": self.checks}
        return Measurement({f"collapse/{name}": float(count) for name, count in counts.items()})

    def _perplexity(self, context: EvalContext) -> float:
        values, _ = read_perplexity(
            context, self.texts, self.limit, self.batch_size, self.max_tokens
        )
        return values["perplexity"]

    def _too_high(self, context: EvalContext) -> str | None:
        """Return which bound on perplexity is broken, in words."""
        self.checks += 1
        if self.max_perplexity_ratio is None and self.max_perplexity is None:
            return None
        now = self._perplexity(context)
        ratio = now / self.pristine
        if self.max_perplexity_ratio is not None and ratio > self.max_perplexity_ratio:
            return (
                f"perplexity {now:.4g} is {ratio:.3g} times that of the pristine model, more than "
                f"{self.max_perplexity_ratio:g} times"
            )
        if self.max_perplexity is not None and now > self.max_perplexity:
            return f"perplexity {now:.4g} is above {self.max_perplexity:g}"
        return None

    # ---------------------------------------------------------------------------------- our loop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep a run that was stopped from going on when it is resumed.

        Args:
            trainer: The trainer.
            pl_module: The module that runs.
        """
        if self.stopped:
            trainer.should_stop = True

    def on_refused(self, commit: Commit, error: NotFiniteError) -> bool:
        """Go on without an edit that is not finite, or end the stream.

        Args:
            commit: What was not written.
            error: Why.
        """
        ids = [request.id for request in commit.context.requests]
        self.rolled_back += len(ids)
        self._act(commit, ids, str(error).partition(", so nothing")[0])
        return True

    def on_commit(self, commit: Commit) -> None:
        """Check the bounds, and act where one is broken.

        Args:
            commit: What was written.
        """
        self._open.append([request.id for request in commit.context.requests])
        self._commits += 1
        if self._commits % self.every_n_commits:
            return
        gone: list[str] = []
        reasons: list[str] = []
        while self._open and (reason := self._broken(commit)):
            reasons.append(reason)
            if self.action == "stop":
                break
            newest = self._open.pop()
            commit.session.ledger.undo(newest, by=type(self).__name__)
            gone = newest + gone
        self._open = []
        if reasons:
            self.rolled_back += len(gone)
            self._act(commit, gone, reasons[0])

    def _act(self, commit: Commit, ids: Sequence[str], reason: str) -> None:
        after = commit.context.step
        event = {"action": self.action, "edits": list(ids), "reason": reason}
        commit.session.measures.note(type(self).__name__, after, event)
        if self.action == "stop":
            self.stopped = True
            commit.session.trainer.should_stop = True
            log.warning("CollapseGuard ends the run after %d edits: %s", after, reason)
        else:
            named = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
            log.warning("CollapseGuard took back %s: %s", named, reason)

    def _broken(self, commit: Commit) -> str | None:
        """Return the first bound that the model breaks, in words."""
        context, session = commit.context, commit.session
        if reason := self._too_high(context):
            return reason
        recent = {name for ids in self._open for name in ids}
        requests = session.stream.requests
        new = [request for request in requests if request.id in recent]
        in_force = set(session.ledger.request_ids) - recent
        old = [request for request in requests if request.id in in_force]
        for what, wanted, bound in (
            ("the new edits", new, self.min_reliability),
            ("earlier edits", _spread(old), self.min_earlier),
        ):
            if bound is not None and wanted:
                share = self._right(context, wanted)
                if share < bound:
                    return f"{share:.0%} of {what} are right, less than {bound:.0%}"
        return None

    def _right(self, context: EvalContext, requests: Sequence[EditRequest]) -> float:
        scorer = Scorer(context.model, context.tokenizer, modes=("tf",), layout=context.layout)
        scores = scorer.score([probes_of(request)[0] for request in requests])
        return mean([score.em or 0.0 for score in scores])

    # --------------------------------------------------------------------------- other trainings

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Check if enough steps have passed, and end the training where a bound is broken.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
            *args: Outputs, batch and its number.
            **kwargs: The same by name.
        """
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, and end the training where a bound is broken.

        Args:
            trainer: The trainer.
            pl_module: The module that is trained.
        """
        super().on_validation_epoch_end(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.stopped


def _spread(requests: Sequence[EditRequest], count: int = 20) -> list[EditRequest]:
    """Return up to ``count`` requests, evenly spaced."""
    if len(requests) <= count:
        return list(requests)
    return [requests[number * len(requests) // count] for number in range(count)]
