"""Layer sweep: candidate layers for an editor, and their ranking by bootstrap."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_edit.analysis.sweep.measure import ASPECTS, CaseScores, study_score, table_of
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.bootstrap import Resampling

#: Bootstrap resamples; the error of the spread is then a thirtieth of the spread.
RESAMPLES = 1000
#: Cases by which the best must lead, those where it is behind taken off, to be one and two standard
#: errors ahead. The bootstrap's error is too small, or zero, where few cases differ; these are the
#: numbers that an interval for paired shares gives (Agresti and Min, Biometrics 61, 2005: half a
#: case added to each cell) for 10 to 50 cases.
LEADS = (2, 4)


def candidates(
    num_blocks: int, width: int, given: Sequence[int | list[int]] | None
) -> list[list[int]]:
    """Return the candidate layers of a sweep.

    Args:
        num_blocks: Number of blocks in the model.
        width: Consecutive blocks that are edited together.
        given: Candidates of the user: a number is the first block of a window, a list is used as
            it is. ``None``: every window.

    Raises:
        ConfigError: If a candidate is empty or names a block that the model does not have.
    """
    if not 1 <= width <= num_blocks:
        raise ConfigError(
            f"--width is the number of blocks edited together, 1 to {num_blocks} in this model; "
            f"got {width}"
        )
    starts: Iterable[int | list[int]] = range(num_blocks - width + 1) if given is None else given
    found = [
        list(range(one, one + width)) if isinstance(one, int) else sorted(set(one))
        for one in starts
    ]
    for layers in found:
        if not layers or layers[0] < 0 or layers[-1] >= num_blocks:
            raise ConfigError(
                f"--candidates asks for layers {layers}, but the model has layers 0 to "
                f"{num_blocks - 1}" + (f" and windows of {width} are tried" if width > 1 else "")
            )
    return [list(layers) for layers in dict.fromkeys(map(tuple, found))]


@dataclass(frozen=True)
class LayerTrial:
    """Trial of one choice of layers: scores of every case, or why it failed.

    Args:
        layers: The blocks.
        outcomes: Scores of each case's edit; empty if the edits failed.
        seconds: Seconds to compute one edit.
        failed: Why no edit was possible; ``None`` if the edits succeeded.
    """

    layers: list[int]
    outcomes: list[CaseScores]
    seconds: float = 0.0
    failed: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {
            "layers": self.layers,
            "seconds_per_edit": round(self.seconds, 4),
            "failed": self.failed,
            "cases": [outcome.to_row() for outcome in self.outcomes],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "LayerTrial":
        """Restore a trial from the plain containers of :meth:`to_row`."""
        outcomes = [CaseScores.from_row(case) for case in row["cases"]]
        return cls(list(row["layers"]), outcomes, row["seconds_per_edit"], row["failed"])


@dataclass(frozen=True)
class RankedTrial:
    """A ranked trial: mean scores of one choice of layers, with standard error and ties.

    Args:
        tried: The trial.
        means: Mean over cases by aspect; an aspect that no case probes is absent.
        score: :func:`~lightning_edit.analysis.sweep.measure.study_score` of the means.
        spread: Bootstrap standard error of ``score`` over cases.
        ties: Whether it ties with the best: the difference to the best is within two standard
            errors of that difference, or the best leads by fewer than :data:`LEADS` [1] cases.
        near: The same with one standard error, and :data:`LEADS` [0] cases.
    """

    tried: LayerTrial
    means: Mapping[str, float]
    score: float
    spread: float
    ties: bool
    near: bool

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {
            "layers": self.tried.layers,
            **{aspect: round(value, 4) for aspect, value in self.means.items()},
            "score": round(self.score, 4),
            "spread": round(self.spread, 4),
            "ties_with_best": self.ties,
        }


def rate(tried: Sequence[LayerTrial], seed: int = 0) -> list[RankedTrial]:
    """Rank the trials by score with bootstrap standard errors, the best first.

    Args:
        tried: Trials on the same cases; failed trials are left out.
        seed: Seed of the bootstrap.
    """
    measured = [one for one in tried if one.outcomes]
    if not measured:
        return []
    values = _stack_tables(measured)
    means = values.nanmean(1)
    scores = study_score(means)
    draws = Resampling(values.shape[1], resamples=RESAMPLES, seed=seed)
    resampled = study_score(torch.from_numpy(draws.table_means(values.double().numpy())))
    best = int(scores.argmax())
    behind = scores[best] - scores
    errors = (resampled[best] - resampled).std(1)
    by_case = study_score(values)
    ahead = (by_case[best] > by_case).sum(1) - (by_case[best] < by_case).sum(1)
    within = [(behind <= number * errors) | (ahead < lead) for number, lead in enumerate(LEADS, 1)]
    rated = [
        RankedTrial(
            one,
            {
                aspect: float(mean)
                for aspect, mean in zip(ASPECTS, means[number], strict=True)
                if not mean.isnan()
            },
            float(scores[number]),
            float(resampled[number].std()),
            number == best or bool(within[1][number]),
            number == best or bool(within[0][number]),
        )
        for number, one in enumerate(measured)
    ]
    return sorted(rated, key=lambda one: -one.score)


def _stack_tables(tried: Sequence[LayerTrial]) -> Tensor:
    """Stack the scores to shape (choices, cases, aspects), with cases in the same order."""
    order = sorted(outcome.case for outcome in tried[0].outcomes)
    tables = []
    for one in tried:
        by_case = {outcome.case: outcome for outcome in one.outcomes}
        tables.append(table_of([by_case[case] for case in order]))
    return torch.stack(tables)
