"""Transactions: conditions that an edit must meet before it is committed, else it is dropped.

The model has the edit's bits while the conditions are checked; an edit that misses one leaves
nothing behind, neither in the model nor in the journal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_edit.callbacks.collapse import read_perplexity
from lightning_edit.callbacks.context import EvalContext
from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.corpus import fixed_texts
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.evaluation.outcomes import ProbeScore, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError, NotFiniteError
from lightning_edit.functional.entropy import at_cap
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.metrics import summarise
from lightning_edit.types import EditRequest, Mode

RELIABILITY = "reliability/answer@gen"
LOCALITY = "locality/kept@tf"


@dataclass(frozen=True)
class Transaction:
    """Conditions of a commit; an edit that misses one is dropped, and the stream goes on.

    Requests that are solved together are one commit: they are dropped together.

    Args:
        min_reliability: Least share of the commit's requests whose generated answer is right
            (``reliability/answer@gen``).
        min_locality: Least share of their locality probes whose teacher-forced prediction is still
            that of the unedited model (``locality/kept@tf``). Requests without such probes meet it.
        max_perplexity_ratio: Largest ratio of the perplexity on fixed texts to that of the unedited
            model.
        max_norm: Largest Frobenius norm of the commit's update of any weight.
        texts: Texts of the perplexity: a ``.txt`` or ``.jsonl`` file, or the texts; ``None``:
            sentences of the embedded atlas. Other models need texts of their own domain.
        limit: Number of texts.
        max_tokens: Texts are truncated to this many tokens.

    Raises:
        ConfigError: If a bound is out of its range.
    """

    min_reliability: float | None = None
    min_locality: float | None = None
    max_perplexity_ratio: float | None = None
    max_norm: float | None = None
    texts: str | list[str] | None = None
    limit: int = 50
    max_tokens: int = 128

    def __post_init__(self) -> None:
        most = {"min_reliability": 1.0, "min_locality": 1.0}
        wrong = []
        for name in ("min_reliability", "min_locality", "max_perplexity_ratio", "max_norm"):
            value, highest = getattr(self, name), most.get(name, math.inf)
            if value is not None and not (0 < value <= highest and math.isfinite(value)):
                bound = f" and at most {highest:g}" if name in most else ""
                wrong.append(f"`{name}` must be above 0{bound}, got {value!r}")
        for name, least in (("limit", 1), ("max_tokens", 2)):
            if getattr(self, name) < least:
                wrong.append(f"`{name}` must be {least} or more, got {getattr(self, name)!r}")
        if wrong:
            raise ConfigError(f"Transaction: {'; '.join(wrong)}")

    @property
    def has_conditions(self) -> bool:
        """Whether there is any condition."""
        names = ("min_reliability", "min_locality", "max_perplexity_ratio", "max_norm")
        return any(getattr(self, name) is not None for name in names)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Scoring modes that the conditions need."""
        needs: tuple[tuple[Mode, float | None], ...] = (
            ("tf", self.min_locality),
            ("gen", self.min_reliability),
        )
        return tuple(mode for mode, bound in needs if bound is not None)

    def check(self, editor: Editor, modes: Sequence[Mode]) -> None:
        """Check that every condition can be decided, before any work is done.

        Args:
            editor: The editor of the run or handle.
            modes: Modes in which probes are scored.

        Raises:
            ConfigError: If a mode is missing, or edits of this editor have no updates of weights,
                so that ``max_norm`` would never refuse one.
            DataError: If the texts cannot be read.
        """
        if missing := [mode for mode in self.modes if mode not in modes]:
            raise ConfigError(
                f"the conditions of the transaction need the scoring modes {list(self.modes)}, but "
                f"the run has {list(modes)}; add {', '.join(missing)} to --modes"
            )
        if self.max_norm is not None and not editor.edits_weights:
            raise ConfigError(
                f"max_norm bounds updates of weights, but edits of {type(editor).__name__} act at "
                "run time and have none; leave it out, and use min_locality or "
                "max_perplexity_ratio"
            )
        if self.max_perplexity_ratio is not None:
            fixed_texts(self.texts, self.limit)

    def perplexity(self, context: EvalContext, baseline: bool = False) -> float | None:
        """Return the perplexity on the fixed texts; ``None`` without a bound on it.

        Args:
            context: The model.
            baseline: Whether it is the one that those with an edit are compared with.

        Raises:
            ArchitectureError: If the model assigns no probability to running text.
            NotFiniteError: If it is a baseline, and outputs of the model are not finite.
        """
        if self.max_perplexity_ratio is None:
            return None
        values, _ = read_perplexity(
            context, self.texts, self.limit, max_tokens=self.max_tokens, baseline=baseline
        )
        return values["perplexity"]

    def check_baseline(self, scores: Sequence[ProbeScore]) -> None:
        """Check that probes of locality can be compared with the model before the edit.

        Args:
            scores: Outcomes of probes on that model.

        Raises:
            NotFiniteError: If its outputs at a probe are not finite, so that there is nothing to
                keep.
        """
        if self.min_locality is None:
            return
        for score in scores:
            if score.expect == "unchanged" and any(
                nll >= NLL_CAP for one in score.forced for nll in one.nlls
            ):
                raise NotFiniteError(
                    f"the model's own outputs at {score.prompt!r} are not finite, before the edit, "
                    "so min_locality compares with nothing; load the model in a wider dtype "
                    "(float32 or bfloat16), take back the edit that broke it, or leave out the "
                    "probe"
                )

    def refusal_by_size(self, delta: Delta) -> str | None:
        """Return why a delta is refused for its size, or ``None``.

        Args:
            delta: The delta.
        """
        norms = delta.norm()
        largest = max(norms, key=lambda name: norms[name], default=None)
        if self.max_norm is None or largest is None or norms[largest] <= self.max_norm:
            return None
        return (
            f"the update of {largest} has norm {norms[largest]:.4g}, more than {self.max_norm:g} "
            "(max_norm)"
        )

    def refusal(
        self,
        scores: Mapping[str, float],
        perplexity: float | None = None,
        pristine: float | None = None,
    ) -> str | None:
        """Return why an edit is refused, or ``None`` if it meets the conditions.

        Args:
            scores: Scores of the commit's requests, by metric name.
            perplexity: Perplexity with the edit.
            pristine: That of the unedited model.
        """
        for name, bound, argument in (
            (RELIABILITY, self.min_reliability, "min_reliability"),
            (LOCALITY, self.min_locality, "min_locality"),
        ):
            found = scores.get(name)
            # No locality probes: nothing to keep. Reliability is always scored.
            if bound is not None and found is not None and not found >= bound:
                return f"{name} is {found:.4g}, less than {bound:g} ({argument})"
        if self.max_perplexity_ratio is not None:
            assert perplexity is not None  # of `perplexity`
            assert pristine is not None
            ratio = perplexity / pristine
            if not ratio <= self.max_perplexity_ratio:
                return (
                    f"perplexity {perplexity:.4g} is {ratio:.4g} times that of the unedited model, "
                    f"more than {self.max_perplexity_ratio:g} times (max_perplexity_ratio)"
                )
            if at_cap(perplexity):
                return (
                    f"perplexity {perplexity:.4g} is at its cap, as where outputs are not finite "
                    "(max_perplexity_ratio)"
                )
        return None

    def before(
        self, editor: Editor, in_force: Sequence[Delta], requests: Sequence[EditRequest]
    ) -> "ConditionCheck":
        """Measure a model before an edit of :meth:`EditedModel.edit`, which is then compared to it.

        Args:
            editor: The editor.
            in_force: The edits in force.
            requests: Requests of the next commit.
        """
        return ConditionCheck(self, editor, in_force, requests)


class ConditionCheck:
    """Conditions of one commit of a handle, relative to the model just before it.

    A run compares with the unedited model; a handle no longer has that one.

    Args:
        transaction: The conditions.
        editor: The editor.
        in_force: The edits in force.
        requests: Requests of the commit.
    """

    def __init__(
        self,
        transaction: Transaction,
        editor: Editor,
        in_force: Sequence[Delta],
        requests: Sequence[EditRequest],
    ) -> None:
        transaction.check(editor, transaction.modes)
        self.transaction = transaction
        self.requests = requests
        responder = editor.responder(in_force)
        self.evaluation: Evaluation | None = None
        if transaction.modes:
            scorer = Scorer(
                editor.language_model,
                editor.prompts,
                modes=transaction.modes,
                responder=responder,
            )
            self.evaluation = Evaluation(scorer, progress=False)
            probes = [probe for request in requests for probe in probes_of(request)]
            self.evaluation.baseline = Baseline(scorer.score(probes))
            transaction.check_baseline(self.evaluation.baseline.scores)
        self.context = EvalContext(
            len(in_force),
            editor.language_model,
            editor.tokenizer,
            requests,
            responder=responder,
            prompts=editor.prompts,
        )
        self.perplexity = transaction.perplexity(self.context, baseline=True)

    def refusal(self, delta: Delta) -> str | None:
        """Return why an edit is refused, or ``None``; the model has its bits now.

        Args:
            delta: The edit.
        """
        return self.transaction.refusal_by_size(delta) or self.transaction.refusal(
            {} if self.evaluation is None else summarise(self.evaluation.scores(self.requests)),
            self.transaction.perplexity(self.context),
            self.perplexity,
        )
