"""Retention history: which edits were correct after their commit, and which still are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_edit.callbacks.base import EvalContext
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics import Retention
from lightning_edit.metrics.aspects import to_floats
from lightning_edit.types import EditRequest

#: Aspects that show whether an edit is retained, and the modes that are compared.
_ASPECTS = ("reliability", "generalization")
_MODES = ("tf", "gen")


@dataclass
class RetentionHistory:
    """Commit step and first correctness of every edit, as the reference for retention.

    Args:
        written_at: Number of edits in the stream up to and including this one, by request.
        once: By request and series (``reliability@tf``), one digit per answer: 1 correct, 0 wrong.
    """

    written_at: dict[str, int] = field(default_factory=dict)
    once: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Serialise to plain containers, a few bytes per edit."""
        return {"written_at": self.written_at, "once": self.once}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "RetentionHistory":
        """Deserialise the dictionary of :meth:`to_dict`."""
        return cls(dict(state["written_at"]), dict(state["once"]))

    def record_commit(self, context: EvalContext) -> None:
        """Record the commit step of edits.

        Args:
            context: Context right after their commit.
        """
        self.written_at |= {request.id: context.step for request in context.requests}

    def score_after_commit(self, scorer: Scorer, requests: Sequence[EditRequest]) -> None:
        """Score edits right after their commit.

        Args:
            scorer: Scorer of the edited model.
            requests: The edits.
        """
        self._record_first(
            scorer.score([probe for request in requests for probe in _edit_probes(request)])
        )

    def _record_first(self, scores: Sequence[ProbeScore]) -> None:
        for (edit_id, series), digits in _correct_digits(scores).items():
            self.once.setdefault(edit_id, {}).setdefault(series, digits)

    def measure(self, context: EvalContext) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Measure retention: correctness now against correctness right after the commit.

        Args:
            context: Context with the outcomes of all edits so far.

        Returns:
            Values by name, and the points of the retention curves.
        """
        if context.ledger is None or not self.written_at:
            return {}, []
        # An edit that was undone does not count as forgotten.
        in_force = set(context.ledger.request_ids)
        scores = [score for score in context.scores if score.edit_id in in_force]
        self._record_first(scores)
        right = _correct_digits(scores)
        values: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        for aspect in _ASPECTS:
            for mode in _MODES:
                own = {e: digits for (e, s), digits in right.items() if s == f"{aspect}@{mode}"}
                found, curve = self._compare(context.step, f"{aspect}@{mode}", own)
                values |= {f"drift.{aspect}/{name}@{mode}": v for name, v in found.items()}
                rows += [
                    {
                        "curve": f"drift.{aspect}/retention@{mode}",
                        "age": age,
                        "share": share,
                        "n": n,
                    }
                    for age, share, n in curve
                ]
        return values, rows

    def _compare(
        self, step: int, series: str, right: Mapping[str, str]
    ) -> tuple[dict[str, float], list[tuple[float, float, int]]]:
        ages, once, now, earlier = [], [], [], []
        for edit_id, digits in right.items():
            age = step - self.written_at[edit_id]
            first = self.once[edit_id][series]
            ages += [age] * len(digits)
            once += [float(digit) for digit in first]
            now += [float(digit) for digit in digits]
            if age > 0:
                earlier.append(sum(map(float, digits)) / len(digits))
        metric = Retention(sync_on_compute=False)
        metric.update(torch.tensor(ages, dtype=torch.long), torch.tensor(once), torch.tensor(now))
        values = to_floats(metric.compute())
        if earlier:
            values["earlier"] = sum(earlier) / len(earlier)
        return values, metric.curve()


def _edit_probes(request: EditRequest) -> Iterator[ScoredProbe]:
    """Return the probes of the edit itself and of its rephrasings."""
    return (item for item in probes_of(request) if item.probe.aspect in _ASPECTS)


def _correct_digits(scores: Sequence[ProbeScore]) -> dict[tuple[str, str], str]:
    """Return correctness as one digit per answer, in probe order, by request and series."""
    found: dict[tuple[str, str], str] = {}
    for score in scores:
        if score.aspect not in _ASPECTS:
            continue
        for mode, value in (("tf", score.em), ("gen", score.answer_gen)):
            if value is not None:
                key = score.edit_id, f"{score.aspect}@{mode}"
                found[key] = found.get(key, "") + str(int(value))
    return found
