"""Which answers of which edits were right when, over a stream of edits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_edit.callbacks.base import EvalContext
from lightning_edit.evaluation.outcomes import ProbeScore, ScoredProbe, probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.metrics import Retention
from lightning_edit.metrics.aspects import plain
from lightning_edit.types import EditRequest

#: Aspects that tell whether an edit still holds, and the measure of each mode.
_ASPECTS = ("reliability", "generalization")
_MODES = ("tf", "gen")


@dataclass
class History:
    """When each edit was written, and which of its answers were right the first time.

    Args:
        written_at: Edits that the stream had come to with this one, by request.
        once: By request and series (``reliability@tf``), one digit an answer: 1 right, 0 wrong.
    """

    written_at: dict[str, int] = field(default_factory=dict)
    once: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, a few bytes an edit."""
        return {"written_at": self.written_at, "once": self.once}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "History":
        """Read what :meth:`to_dict` wrote."""
        return cls(dict(state["written_at"]), dict(state["once"]))

    def written(self, context: EvalContext) -> None:
        """Note that edits were written.

        Args:
            context: Right after their commit.
        """
        self.written_at |= {request.id: context.step for request in context.requests}

    def ask(self, scorer: Scorer, requests: Sequence[EditRequest]) -> None:
        """Ask edits that were just written.

        Args:
            scorer: Puts questions to the model.
            requests: The edits.
        """
        self._note(scorer.score([probe for request in requests for probe in _own(request)]))

    def _note(self, scores: Sequence[ProbeScore]) -> None:
        for (edit_id, series), digits in _right(scores).items():
            self.once.setdefault(edit_id, {}).setdefault(series, digits)

    def measure(self, context: EvalContext) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Compare what is right now with what was right the first time.

        Args:
            context: With the outcomes of all edits so far.

        Returns:
            Values by name, and the points of the retention curves.
        """
        if context.ledger is None or not self.written_at:
            return {}, []
        # An edit that was taken back is not one that was forgotten.
        in_force = set(context.ledger.request_ids)
        scores = [score for score in context.scores if score.edit_id in in_force]
        self._note(scores)
        right = _right(scores)
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
        values = plain(metric.compute())
        if earlier:
            values["earlier"] = sum(earlier) / len(earlier)
        return values, metric.curve()


def _own(request: EditRequest) -> Iterator[ScoredProbe]:
    """Return the edit itself and its rephrasings."""
    return (item for item in probes_of(request) if item.probe.aspect in _ASPECTS)


def _right(scores: Sequence[ProbeScore]) -> dict[tuple[str, str], str]:
    """Return one digit an answer, in the order of the probes, by request and series."""
    found: dict[tuple[str, str], str] = {}
    for score in scores:
        if score.aspect not in _ASPECTS:
            continue
        for mode, value in (("tf", score.em), ("gen", score.em_gen)):
            if value is not None:
                key = score.edit_id, f"{score.aspect}@{mode}"
                found[key] = found.get(key, "") + str(int(value))
    return found
