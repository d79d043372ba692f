"""A benchmark's cells into tables that know their spreads; how they look is another module's.

Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence

from lightning_edit.benchmark.columns import USUAL, Column
from lightning_edit.benchmark.curves import curves
from lightning_edit.benchmark.grid import ColumnGroup, Grid, Published
from lightning_edit.benchmark.outcomes import CellOutcome, values_of
from lightning_edit.benchmark.table import (
    SHOWN,
    Line,
    Table,
    Value,
    by_method,
    conditions,
    figure_of,
    missing,
    points_of,
    requests_at,
    value_of,
)
from lightning_edit.functional.bootstrap import Floats, Mean, Resampling

BEFORE = "before editing"


def tables_of(grid: Grid, outcomes: Sequence[CellOutcome]) -> list[Table]:
    """Make every table of a grid.

    Args:
        grid: The benchmark.
        outcomes: Its cells.

    Returns:
        For each model, data and protocol one table for each group of columns, and after them the
        curves over numbers of edits.
    """
    groups = grid.columns or (ColumnGroup(USUAL),)
    tables = []
    for place in dict.fromkeys((o.cell.model, o.cell.data, o.cell.protocol) for o in outcomes):
        here = [o for o in outcomes if (o.cell.model, o.cell.data, o.cell.protocol) == place]
        tables += [
            _table(grid, place, here, group) for group in groups if group.fits(place[1], place[2])
        ]
    for name in grid.curves:
        tables += curves(grid, outcomes, Column(name))
    return tables


# ------------------------------------------------------------------------------------ one protocol


def _table(
    grid: Grid,
    place: tuple[str, str, str],
    outcomes: Sequence[CellOutcome],
    group: ColumnGroup,
) -> Table:
    columns = tuple(Column(name) for name in group.columns)
    methods = by_method(outcomes)
    reached = [o for o in outcomes if o.points] or outcomes
    last = max((point for o in reached for point in points_of(o)), default=0)
    requests = requests_at(outcomes, last)
    lines: list[Line] = []
    done = [o for o in outcomes if o.status == "done"]
    if done:
        resampling = Resampling(len(requests), max(len(listed) for listed in methods.values()))
        arrays = {
            (method, column): values_of(listed, last, column.name, requests)
            for method, listed in methods.items()
            if all(o.status == "done" for o in listed)
            for column in columns
            if not column.is_time
        }
        before = [values_of(done[:1], 0, column.name, requests) for column in columns]
        plain = Resampling(len(requests))
        values = [value_of(plain, array) for array in before]
        if any(values):
            lines.append(Line(BEFORE, tuple(values), source="before"))
        best = {column: _best(resampling, arrays, column) for column in columns}
        for method, listed in methods.items():
            lines.append(_line(method, listed, columns, arrays, resampling, best))
    else:
        lines = [_line(method, listed, columns, {}, None, {}) for method, listed in methods.items()]
    shown = [p for p in grid.published if (p.model, p.data, p.protocol) == place]
    shown = [p for p in shown if p.after in (None, last) and any(_published(p, columns))]
    lines += [line for each in shown for line in _published(each, columns)]
    seeds = sorted({o.cell.seed for o in outcomes})
    behind = [f"{said} {_seeds(seeds)}" for said in _counts(lines, columns)]
    notes = [*missing(methods), *behind, *(conditions(each) for each in shown)]
    title = " · ".join((*place, group.title) if group.title else place)
    heads = tuple(column.heads for column in columns)
    place_of = dict(zip(("model", "data", "protocol"), place, strict=True))
    place_of |= {"after": str(last), "seeds": " ".join(map(str, seeds))}
    return Table(title, heads, columns, tuple(lines), tuple(notes), place_of)


def _best(
    resampling: Resampling, arrays: Mapping[tuple[str, Column], Floats], column: Column
) -> str | None:
    """Return the method that beats every other by more than the spread of the difference."""
    listed = {method: array for (method, of), array in arrays.items() if of == column}
    means = {
        method: mean.value
        for method, array in listed.items()
        if (mean := resampling.mean(array)) is not None
    }
    if len(means) < 2:
        return None
    first = (max if column.rises else min)(means, key=lambda method: means[method])
    others = [method for method in means if method != first]
    ahead = all(resampling.differ(listed[first], listed[other]) for other in others)
    return first if ahead else None


def _line(
    method: str,
    outcomes: Sequence[CellOutcome],
    columns: Sequence[Column],
    arrays: Mapping[tuple[str, Column], Floats],
    resampling: Resampling | None,
    best: Mapping[Column, str | None],
) -> Line:
    lacking = next((o for o in outcomes if o.status != "done"), None)
    if lacking is not None or resampling is None:
        status = outcomes[0].status if lacking is None else lacking.status
        return Line(method, (None,) * len(columns), SHOWN.get(status, status))
    values: list[Value | None] = []
    for column in columns:
        if column.is_time:
            times = [time for o in outcomes if (time := o.time(column.name)) is not None]
            mean = sum(times) / len(times)
            values.append(Value(Mean(mean, min(times), max(times), len(times)), spread=False))
        else:
            values.append(value_of(resampling, arrays[method, column], best[column] == method))
    return Line(method, tuple(values))


def _published(published: Published, columns: Sequence[Column]) -> Iterator[Line]:
    for method, figures in published.values.items():
        if not any(column.name in figures for column in columns):
            continue
        values = tuple(
            figure_of(column, figures[column.name]) if column.name in figures else None
            for column in columns
        )
        yield Line(f"{method}, {published.label}", values, source="published")


# ------------------------------------------------------------------------------------------ notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."


def _counts(lines: Sequence[Line], columns: Sequence[Column]) -> Iterator[str]:
    """Say how many requests are behind each group of columns."""
    counts: dict[str, int] = {}
    for line in lines:
        for column, value in zip(columns, line.values, strict=True):
            if value is not None and not column.is_time and line.source == "ours":
                group = column.name.partition("/")[0]
                counts[group] = max(counts.get(group, 0), value.mean.n)
    if counts and len(set(counts.values())) == 1:
        yield f"n = {next(iter(counts.values()))} requests."
    elif counts:
        yield "n, requests: " + ", ".join(f"{group} {n}" for group, n in counts.items()) + "."
