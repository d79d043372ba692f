"""Scores of one case's edit, by aspect, and tables of them; what sweep and trade-off compare."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.measures import mean
from lightning_edit.functional.scores import held_mean
from lightning_edit.metrics.aspects import request_means
from lightning_edit.types import EditRequest, Mode

#: Aspects of a study.
ASPECTS: tuple[str, ...] = ("reliability", "generalization", "locality")
#: What the mean of each aspect counts as at least where the edit itself is held, so that settings
#: without any generalization, or any locality, are still compared by the rest. Some methods answer
#: no rewording by design; an edit that changes every other answer is of no use.
LEAST = (0.0, 0.1, 0.01)
#: Measure that decides in a mode whether an answer is right, as in a run's table.
_RIGHT: dict[Mode, str] = {"tf": "em", "gen": "answer"}

Case = list[EditRequest]


def study_score(means: Float[Tensor, "... a"]) -> Float[Tensor, "..."]:
    """Return what a study compares: the harmonic mean over aspects, each at least :data:`LEAST`.

    Args:
        means: Means of :data:`ASPECTS`; NaN where no case asks about one.
    """
    return held_mean(means, means.new_tensor(LEAST))


def measure_of(aspect: str, mode: Mode) -> str:
    """Return the measure of an aspect in a study: the leading one of a run's table.

    Args:
        aspect: One of :data:`ASPECTS`.
        mode: Teacher forced or generated.
    """
    return "kept" if aspect == "locality" else _RIGHT[mode]


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case's edit, by aspect.

    Args:
        case: Id of the case's first request.
        values: Shares by aspect; an aspect that the case does not probe is absent.
    """

    case: str
    values: Mapping[str, float]

    @classmethod
    def of(cls, scores: Sequence[ProbeScore], mode: Mode) -> "CaseScores":
        """Average the probe scores of one case, first within each request.

        Args:
            scores: Probe scores, compared with the pristine model.
            mode: Teacher forced or generated.
        """
        by_request: dict[str, list[ProbeScore]] = {}
        for score in scores:
            by_request.setdefault(score.edit_id, []).append(score)
        found = [request_means(listed) for listed in by_request.values()]
        names = {aspect: (aspect, f"{measure_of(aspect, mode)}@{mode}") for aspect in ASPECTS}
        values = {
            aspect: mean([one[name] for one in found if name in one])
            for aspect, name in names.items()
            if any(name in one for one in found)
        }
        return cls(next(iter(by_request)), values)

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {"case": self.case, **self.values}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "CaseScores":
        """Restore scores from the plain containers of :meth:`to_row`."""
        values = {aspect: float(row[aspect]) for aspect in ASPECTS if aspect in row}
        return cls(str(row["case"]), values)


def table_of(outcomes: Sequence[CaseScores]) -> Float[Tensor, "n a"]:
    """Convert case scores to a tensor, NaN where a case does not probe an aspect.

    Args:
        outcomes: Scores of the cases, one row each; columns are :data:`ASPECTS`.
    """
    nothing = float("nan")
    rows = [[one.values.get(aspect, nothing) for aspect in ASPECTS] for one in outcomes]
    return torch.tensor(rows, dtype=torch.float64)


def digest(value: Any) -> str:
    """Return the SHA-256 hash of plain containers as hexadecimal digits.

    Args:
        value: Any value that JSON can represent.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
