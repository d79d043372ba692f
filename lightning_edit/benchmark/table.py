"""A table, and what every kind of table needs. Nothing here imports torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Published
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.functional.bootstrap import Floats, Mean, Resampling

#: What a row shows in place of numbers.
SHOWN = {"open": "not run", "started": "not run"}


@dataclass(frozen=True)
class Value:
    """One cell of a table.

    Args:
        mean: The number, with its spread where one is known.
        best: Whether it is better than every other method's by more than the spread of the
            difference.
        spread: Whether an interval was drawn.
    """

    mean: Mean
    best: bool = False
    spread: bool = True


@dataclass(frozen=True)
class Line:
    """One row of a table.

    Args:
        label: The method.
        values: One entry a column; ``None`` where there is no number.
        reason: Why there are none at all.
        source: ``ours``, ``before`` or ``published``.
    """

    label: str
    values: tuple[Value | None, ...]
    reason: str = ""
    source: str = "ours"


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: What was measured.
        heads: Head of each column, in short lines.
        columns: The columns; a curve has the same measure in each.
        lines: Its rows.
        notes: What stands below it.
        place: Model, data, protocol and evaluation points, for CSV.
    """

    title: str
    heads: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    place: Mapping[str, str] = field(default_factory=dict)

    @property
    def decimals(self) -> int:
        """Digits after the point of a per cent value: few requests cannot carry any."""
        counts = [v.mean.n for line in self.lines for v in line.values if v is not None]
        return 1 if max(counts, default=0) > 400 else 0


def points_of(outcome: CellOutcome) -> Sequence[int]:
    """Return the evaluation points of a cell, those that are planned where there are none yet."""
    return [after for after in outcome.points if after] or outcome.cell.planned


def by_method(outcomes: Sequence[CellOutcome]) -> dict[str, list[CellOutcome]]:
    """Return the cells of each method, one a seed."""
    by_method: dict[str, list[CellOutcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.cell.method, []).append(outcome)
    return by_method


def requests_at(outcomes: Sequence[CellOutcome], after: int) -> list[str]:
    """Return the requests that were scored at a point, in order."""
    named = [request for o in outcomes for request in o.points.get(after, {})]
    return list(dict.fromkeys(named))


def value_of(resampling: Resampling, values: Floats, best: bool = False) -> Value | None:
    """Return a mean with its spread; ``None`` where no request has a value."""
    mean = resampling.mean(values)
    # One request says nothing about others.
    return None if mean is None else Value(mean, best, spread=mean.n > 1)


def figure_of(column: Column, figure: float) -> Value:
    """Return a published figure as a value without spread."""
    value = figure if column.is_time else figure / 100
    return Value(Mean(value, value, value, 0), spread=False)


def missing(methods: Mapping[str, Sequence[CellOutcome]]) -> Iterator[str]:
    """Yield why methods have no numbers."""
    for method, outcomes in methods.items():
        for outcome in outcomes:
            if outcome.reason:
                seed = f" (seed {outcome.cell.seed})" if len(outcomes) > 1 else ""
                yield f"{method}{seed} {outcome.status}: {outcome.reason}"


def conditions(published: Published) -> str:
    """Return what published figures were measured on, and where they stand."""
    return f"{published.label}: {published.conditions} Source: {published.source}"
