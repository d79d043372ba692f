"""Collapse guard: rollback of edits, or early stopping, when a quality bound is broken."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl

from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.callbacks.collapse import read_perplexity
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, NotFiniteError, SolveError
from lightning_edit.functional.entropy import at_cap
from lightning_edit.functional.measures import mean
from lightning_edit.functional.visible import visible
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)


class CollapseGuard(MeasurementCallback):
    """Rollback or early stopping when a commit breaks a bound on perplexity or accuracy.

    Under ``EditTrainer`` a commit that breaks a bound is undone and the stream continues
    (``rollback``), or the stream ends (``stop``). The same holds for a non-finite edit, which is
    never written, and for one whose search overflows. The journal, ``results.json`` (``events``)
    and the final table list each event. Any other training is stopped. A resumed run decides like
    an uninterrupted one.

    Logged are ``collapse/rolled_back``, the number of edits undone so far, and
    ``collapse/checks``.

    Args:
        max_perplexity_ratio: Maximum ratio of perplexity on fixed texts to the pristine model's;
            ``None``: no bound. 2 is our choice.
        max_perplexity: Maximum perplexity; ``None``: no bound.
        min_reliability: Minimum share of the requests since the last check whose answer is correct
            under teacher forcing; ``None``: no bound. Used by ``EditTrainer`` only.
        min_earlier: The same for up to 20 earlier requests in force, evenly spaced.
        action: Action when a bound is broken.
        every_n_commits: Commits between two checks. If a check fails, commits since the last one
            are undone, newest first, until the bounds hold.
        texts: See :class:`~lightning_edit.callbacks.CollapseCallback`.
        limit: Number of texts.
        max_tokens: Texts are truncated to this many tokens.
        batch_size: Texts per batch.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

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
        bounds = (max_perplexity_ratio, max_perplexity, min_reliability, min_earlier)
        if all(bound is None for bound in bounds):
            raise ConfigError(
                "CollapseGuard has no bound; give `max_perplexity_ratio`, `max_perplexity`, "
                "`min_reliability` or `min_earlier`"
            )
        self.require(
            action=(action in ("rollback", "stop"), "rollback or stop"),
            max_perplexity_ratio=_positive(max_perplexity_ratio),
            max_perplexity=_positive(max_perplexity),
            min_reliability=_share(min_reliability),
            min_earlier=_share(min_earlier),
            every_n_commits=(every_n_commits >= 1, "1 or more"),
            limit=(limit >= 1, "1 or more"),
            max_tokens=(max_tokens >= 2, "2 or more"),
            batch_size=(batch_size >= 1, "1 or more"),
        )
        self._reset()

    def _reset(self) -> None:
        self.pristine = 0.0
        self.rolled_back = 0
        self.checks = 0
        self.stopped = False
        self._commits = 0
        #: Request ids of each commit that was not checked yet.
        self._unchecked: list[list[str]] = []

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: baseline perplexity, counts and unchecked commits."""
        return super().state_dict() | {
            "pristine": self.pristine,
            "rolled_back": self.rolled_back,
            "checks": self.checks,
            "stopped": self.stopped,
            "commits": self._commits,
            "open": self._unchecked,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        self.pristine = state_dict["pristine"]
        self.rolled_back = state_dict["rolled_back"]
        self.checks = state_dict["checks"]
        self.stopped = state_dict["stopped"]
        self._commits = state_dict["commits"]
        self._unchecked = [list(ids) for ids in state_dict["open"]]

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self._reset()

    # -------------------------------------------------------------------------------- measuring

    def measure(self, context: EvalContext) -> Measurement:
        """Measure the pristine perplexity; later, report counts and, in other training, check.

        Args:
            context: The model.

        Raises:
            NotFiniteError: If outputs of the pristine model are not finite.
        """
        if self.before is None:
            self.pristine = self._perplexity(context, baseline=True)
        elif context.ledger is None and (reason := self._broken_perplexity_bound(context)):
            self.stopped = True
            log.warning("CollapseGuard ends the training at step %d: %s", context.step, reason)
        counts = {"rolled_back": self.rolled_back, "checks": self.checks}
        return Measurement({f"collapse/{name}": float(count) for name, count in counts.items()})

    def _perplexity(self, context: EvalContext, baseline: bool = False) -> float:
        values, _ = read_perplexity(
            context, self.texts, self.limit, self.batch_size, self.max_tokens, baseline
        )
        return values["perplexity"]

    def _broken_perplexity_bound(self, context: EvalContext) -> str | None:
        """Return a description of the perplexity bound that is broken, or ``None``."""
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
        if at_cap(now):
            return f"perplexity {now:.4g} is at its cap, as where outputs are not finite"
        return None

    # ------------------------------------------------------------------------------ EditTrainer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a resumed run at once if the guard had already stopped it.

        Args:
            trainer: The trainer.
            pl_module: The LightningModule that runs.
        """
        if self.stopped:
            trainer.should_stop = True

    def on_refused(self, commit: Commit, error: NotFiniteError | SolveError) -> bool:
        """Skip an edit that is not finite or was not found, or stop the stream.

        Args:
            commit: The commit that was refused.
            error: The reason.
        """
        ids = [request.id for request in commit.context.requests]
        self.rolled_back += len(ids)
        self._take_action(commit, ids, str(error).partition(", so nothing")[0])
        return True

    def on_commit(self, commit: Commit) -> None:
        """Check the bounds; roll back or stop if one is broken.

        Args:
            commit: The commit.
        """
        self._unchecked.append([request.id for request in commit.context.requests])
        self._commits += 1
        if self._commits % self.every_n_commits:
            return
        gone: list[str] = []
        reasons: list[str] = []
        while self._unchecked and (reason := self._broken_bound(commit)):
            reasons.append(reason)
            if self.action == "stop":
                break
            newest = self._unchecked.pop()
            commit.session.ledger.undo(newest, by=type(self).__name__)
            gone = newest + gone
        self._unchecked = []
        if reasons:
            self.rolled_back += len(gone)
            self._take_action(commit, gone, reasons[0])

    def _take_action(self, commit: Commit, ids: Sequence[str], reason: str) -> None:
        after = commit.context.step
        event = {"action": self.action, "edits": list(ids), "reason": reason}
        commit.session.measures.note(type(self).__name__, after, event)
        if self.action == "stop":
            self.stopped = True
            commit.session.trainer.should_stop = True
            log.warning("CollapseGuard ends the run after %d edits: %s", after, reason)
        else:
            named = visible(", ".join(ids[:4])) + (", …" if len(ids) > 4 else "")
            log.warning("CollapseGuard took back %s: %s", named, reason)

    def _broken_bound(self, commit: Commit) -> str | None:
        """Return a description of the first bound that the model breaks, or ``None``."""
        context, session = commit.context, commit.session
        if reason := self._broken_perplexity_bound(context):
            return reason
        recent = {name for ids in self._unchecked for name in ids}
        requests = session.stream.requests
        new = [request for request in requests if request.id in recent]
        in_force = set(session.ledger.request_ids) - recent
        old = [request for request in requests if request.id in in_force]
        for what, wanted, bound in (
            ("the new edits", new, self.min_reliability),
            ("earlier edits", _evenly_spaced(old), self.min_earlier),
        ):
            if bound is not None and wanted:
                share = self._reliability(context, wanted)
                if share < bound:
                    return f"{share:.0%} of {what} are right, less than {bound:.0%}"
        return None

    def _reliability(self, context: EvalContext, requests: Sequence[EditRequest]) -> float:
        scorer = Scorer(
            context.model,
            context.encoder,
            modes=("tf",),
            layout=context.layout,
            responder=context.responder,
        )
        scores = scorer.score([probes_of(request)[0] for request in requests])
        return mean([score.em or 0.0 for score in scores])

    # ---------------------------------------------------------------------------- other training

    def _measure_and_log(self, trainer: pl.Trainer, requests: Sequence[EditRequest] = ()) -> None:
        super()._measure_and_log(trainer, requests)
        trainer.should_stop = trainer.should_stop or self.stopped


def _share(value: float | None) -> tuple[bool, str]:
    """Return whether a bound is a share, and what is allowed."""
    return value is None or 0 <= value <= 1, "a share from 0 to 1, or None"


def _positive(value: float | None) -> tuple[bool, str]:
    """Return whether a bound is above 0, and what is allowed; NaN is not."""
    return value is None or value > 0, "above 0, or None"


def _evenly_spaced(requests: Sequence[EditRequest], count: int = 20) -> list[EditRequest]:
    """Return up to ``count`` requests, evenly spaced."""
    if len(requests) <= count:
        return list(requests)
    return [requests[number * len(requests) // count] for number in range(count)]
