"""Trade-off study: scale each host edit by interpolation weights α and score it at each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_edit.analysis.sweep.measure import ASPECTS, CaseScores, study_score, table_of
from lightning_edit.editors.wrappers.one_li import scaled
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edit_loop import written_alone
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.study_rows import ResumableRows
from lightning_edit.types import EditBatch, Mode


def check_weights(weights: Sequence[float]) -> list[float]:
    """Check the interpolation weights α; return them sorted and without duplicates.

    Args:
        weights: Interpolation weight α of each point; 0 is the original model, 1 the edited one.

    Raises:
        ConfigError: If there is none, or one lies outside 0 to 1.
    """
    if not weights or not all(0 <= weight <= 1 for weight in weights):
        raise ConfigError(f"--weights are numbers from 0 (original) to 1 (edited), got {weights}")
    return sorted(set(weights))


@dataclass(frozen=True)
class Point:
    """One point of the trade-off curve: mean scores at one interpolation weight.

    Args:
        weight: Interpolation weight α.
        means: Mean over cases by aspect.
        score: :func:`~lightning_edit.analysis.sweep.measure.study_score` of the means.
    """

    weight: float
    means: Mapping[str, float]
    score: float

    @classmethod
    def of(cls, weight: float, outcomes: Sequence[CaseScores]) -> "Point":
        """Average the scores of all cases at one interpolation weight.

        Args:
            weight: Interpolation weight α.
            outcomes: Scores of each case.
        """
        means = table_of(outcomes).nanmean(0)
        found = zip(ASPECTS, means, strict=True)
        by_aspect = {aspect: float(value) for aspect, value in found if not value.isnan()}
        return cls(weight, by_aspect, float(study_score(means)))

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        means = {aspect: round(value, 4) for aspect, value in self.means.items()}
        return {"alpha": self.weight, **means, "score": round(self.score, 4)}


class Outcomes(ResumableRows):
    """Resumable file ``tradeoff.jsonl``: the study's options, then one line per case and weight.

    The lines of a case are written together, so a kill loses at most the current cases.

    Args:
        path: The file.
        study: Options that must match to resume the study.

    Raises:
        ConfigError: If the file belongs to another study.
    """

    def __init__(self, path: Path, study: Mapping[str, Any]) -> None:
        super().__init__(path, study)
        self.found: dict[float, list[CaseScores]] = {}
        for row in self.rows:
            self.found.setdefault(row["alpha"], []).append(CaseScores.from_row(row))

    @property
    def cases(self) -> set[str]:
        """Ids of the finished cases."""
        return {outcome.case for listed in self.found.values() for outcome in listed}

    def add(self, by_weight: Mapping[float, Sequence[CaseScores]]) -> None:
        """Append the scores of cases at every weight to the file.

        Args:
            by_weight: Scores of the cases, by weight.
        """
        self.append(
            {"alpha": weight, **outcome.to_row()}
            for weight, outcomes in by_weight.items()
            for outcome in outcomes
        )
        for weight, outcomes in by_weight.items():
            self.found.setdefault(weight, []).extend(outcomes)


def at_weights(
    model: Any,
    batch: EditBatch,
    delta: Delta,
    weights: Sequence[float],
    evaluation: Evaluation,
    mode: Mode,
) -> Iterator[tuple[float, list[CaseScores]]]:
    """Score an edit scaled by every interpolation weight; take it back after each.

    Args:
        model: The language model.
        batch: The cases that the edit covers.
        delta: The host's edit.
        weights: Interpolation weight α of each point.
        evaluation: Scorer of the probes.
        mode: Teacher forced or generated.

    Yields:
        Each weight, and the scores of every case.
    """
    cases = batch.cases()
    by_edit = {name: number for number, case in enumerate(cases) for name in case.ids}
    points = ((batch, _interpolated(delta, weight)) for weight in weights)
    for weight, _ in zip(weights, written_alone(Ledger(model), points), strict=True):
        split: list[list[Any]] = [[] for _ in cases]
        for score in evaluation.scores(batch.requests):
            split[by_edit[score.edit_id]].append(score)
        yield weight, [CaseScores.of(one, mode) for one in split]


def _interpolated(delta: Delta, weight: float) -> Delta:
    updates = {name: scaled(one, weight) for name, one in delta.weights.items() if weight > 0}
    return replace(delta, weights=updates)
