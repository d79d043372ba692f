"""Benchmark tables: data classes for table, row and value, with helpers. No import of torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Published
from lightning_edit.benchmark.outcomes import CellOutcome
from lightning_edit.functional.bootstrap import Floats, Mean, Resampling

#: Text that a row shows instead of numbers, by status.
STATUS_WORDS = {"open": "not run", "started": "not run"}


@dataclass(frozen=True)
class Value:
    """One value of a table: a mean with its bootstrap interval.

    Args:
        mean: The mean, with its interval if there is one.
        best: Whether it is better than every other method's by more than the interval of the
            paired difference.
        spread: Whether there is an interval.
    """

    mean: Mean
    best: bool = False
    spread: bool = True


@dataclass(frozen=True)
class TableRow:
    """One row of a table: a method and its values.

    Args:
        label: The method.
        values: One entry per column; ``None`` where there is no value.
        reason: Why the row has no values; may be empty.
        source: ``ours``, ``before`` or ``published``.
    """

    label: str
    values: tuple[Value | None, ...]
    reason: str = ""
    source: str = "ours"


@dataclass(frozen=True)
class Table:
    """A benchmark table: title, headers, columns, rows and notes.

    Args:
        title: Title of the table.
        heads: Header of each column, as short lines.
        columns: The columns; a curve has the same metric in each.
        lines: Its rows.
        notes: Notes below the table.
        place: Model, data, protocol, evaluation point and seeds, for CSV and JSON.
        caption: What it shows, in words, for a paper; may be empty.
    """

    title: str
    heads: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]
    lines: tuple[TableRow, ...]
    notes: tuple[str, ...]
    place: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""

    @property
    def decimals(self) -> int:
        """Decimals of a percentage: none for up to 400 requests, else one."""
        counts = [v.mean.n for line in self.lines for v in line.values if v is not None]
        return 1 if max(counts, default=0) > 400 else 0


def evaluation_points(outcome: CellOutcome) -> Sequence[int]:
    """Return the evaluation points of a cell; the planned points if there are no results."""
    return [after for after in outcome.points if after] or outcome.cell.planned


def group_by_method(outcomes: Sequence[CellOutcome]) -> dict[str, list[CellOutcome]]:
    """Group cells by method, one cell per seed."""
    group_by_method: dict[str, list[CellOutcome]] = {}
    for outcome in outcomes:
        group_by_method.setdefault(outcome.cell.method, []).append(outcome)
    return group_by_method


def requests_at(outcomes: Sequence[CellOutcome], after: int) -> list[str]:
    """Return the ids of the requests scored at an evaluation point, in order."""
    named = [request for o in outcomes for request in o.points.get(after, {})]
    return list(dict.fromkeys(named))


def mean_value(resampling: Resampling, values: Floats, best: bool = False) -> Value | None:
    """Return the mean with its bootstrap interval; ``None`` if no request has a value."""
    mean = resampling.mean(values)
    # A single request has no interval.
    return None if mean is None else Value(mean, best, spread=mean.n > 1)


def time_value(outcomes: Sequence[CellOutcome], column: str) -> Value | None:
    """Return a method's time, the mean over its seeds; ``None`` if no cell recorded it."""
    times = [time for o in outcomes if (time := o.time(column)) is not None]
    if not times:
        return None
    mean = sum(times) / len(times)
    return Value(Mean(mean, min(times), max(times), len(times)), spread=False)


def published_value(column: Column, figure: float) -> Value:
    """Return a published figure as a value without an interval."""
    value = figure if column.is_time else figure / 100
    return Value(Mean(value, value, value, 0), spread=False)


def missing_notes(methods: Mapping[str, Sequence[CellOutcome]]) -> Iterator[str]:
    """Yield notes on the methods without results, with the reason."""
    for method, outcomes in methods.items():
        for outcome in outcomes:
            if outcome.reason:
                seed = f" (seed {outcome.cell.seed})" if len(outcomes) > 1 else ""
                yield f"{method}{seed} {outcome.status}: {outcome.reason}"


def source_note(published: Published) -> str:
    """Return a note on published figures: conditions and source."""
    return f"{published.label}: {published.conditions} Source: {published.source}"
