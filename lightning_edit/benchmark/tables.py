"""Tables of a benchmark: means with bootstrap intervals and the best method per column.

:mod:`~lightning_edit.benchmark.formats` renders them. Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence

from lightning_edit.benchmark.captions import caption
from lightning_edit.benchmark.columns import DEFAULT_COLUMNS, Column
from lightning_edit.benchmark.curves import curves
from lightning_edit.benchmark.grid import ColumnGroup, Grid, Published
from lightning_edit.benchmark.outcomes import CellOutcome, values_of
from lightning_edit.benchmark.table import (
    STATUS_WORDS,
    Table,
    TableRow,
    Value,
    evaluation_points,
    group_by_method,
    mean_value,
    missing_notes,
    published_value,
    requests_at,
    source_note,
    time_value,
)
from lightning_edit.functional.bootstrap import Floats, Resampling

BEFORE = "before editing"


def tables_of(grid: Grid, outcomes: Sequence[CellOutcome]) -> list[Table]:
    """Build every table of a benchmark grid.

    Args:
        grid: The benchmark.
        outcomes: Its cells.

    Returns:
        One table per model, data, protocol and group of columns, followed by the curves over the
        number of edits.
    """
    groups = grid.columns or (ColumnGroup(DEFAULT_COLUMNS),)
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
    methods = group_by_method(outcomes)
    reached = [o for o in outcomes if o.points] or outcomes
    last = max((point for o in reached for point in evaluation_points(o)), default=0)
    requests = requests_at(outcomes, last)
    lines: list[TableRow] = []
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
        single = Resampling(len(requests))
        values = [mean_value(single, array) for array in before]
        if any(values):
            lines.append(TableRow(BEFORE, tuple(values), source="before"))
        best = {column: _best_method(resampling, arrays, column) for column in columns}
        for method, listed in methods.items():
            lines.append(_method_row(method, listed, columns, arrays, resampling, best))
    else:
        lines = [
            _method_row(method, listed, columns, {}, None, {}) for method, listed in methods.items()
        ]
    shown = [p for p in grid.published if (p.model, p.data, p.protocol) == place]
    shown = [p for p in shown if p.after in (None, last) and any(_published_rows(p, columns))]
    lines += [line for each in shown for line in _published_rows(each, columns)]
    seeds = sorted({o.cell.seed for o in outcomes})
    counts = [f"{count_note} {_seed_note(seeds)}" for count_note in count_notes(lines, columns)]
    notes = [*missing_notes(methods), *counts, *(source_note(each) for each in shown)]
    title = " · ".join((*place, group.title) if group.title else place)
    heads = tuple(column.heads for column in columns)
    csv_place = dict(zip(("model", "data", "protocol"), place, strict=True))
    csv_place |= {"after": str(last), "seeds": " ".join(map(str, seeds))}
    words = caption(outcomes[0].cell, len(requests) or last, columns, group.title)
    return Table(title, heads, columns, tuple(lines), tuple(notes), csv_place, words)


def _best_method(
    resampling: Resampling, arrays: Mapping[tuple[str, Column], Floats], column: Column
) -> str | None:
    """Return the method that beats every other by more than the paired difference's interval."""
    listed = {method: array for (method, of), array in arrays.items() if of == column}
    means = {
        method: mean.value
        for method, array in listed.items()
        if (mean := resampling.mean(array)) is not None
    }
    if len(means) < 2:
        return None
    first = (max if column.higher_is_better else min)(means, key=lambda method: means[method])
    others = [method for method in means if method != first]
    ahead = all(resampling.differ(listed[first], listed[other]) for other in others)
    return first if ahead else None


def _method_row(
    method: str,
    outcomes: Sequence[CellOutcome],
    columns: Sequence[Column],
    arrays: Mapping[tuple[str, Column], Floats],
    resampling: Resampling | None,
    best: Mapping[Column, str | None],
) -> TableRow:
    lacking = next((o for o in outcomes if o.status != "done"), None)
    if lacking is not None or resampling is None:
        status = outcomes[0].status if lacking is None else lacking.status
        return TableRow(method, (None,) * len(columns), STATUS_WORDS.get(status, status))
    values: list[Value | None] = []
    for column in columns:
        if column.is_time:
            values.append(time_value(outcomes, column.name))
        else:
            values.append(mean_value(resampling, arrays[method, column], best[column] == method))
    return TableRow(method, tuple(values))


def _published_rows(published: Published, columns: Sequence[Column]) -> Iterator[TableRow]:
    for method, figures in published.values.items():
        if not any(column.name in figures for column in columns):
            continue
        values = tuple(
            published_value(column, figures[column.name]) if column.name in figures else None
            for column in columns
        )
        yield TableRow(f"{method}, {published.label}", values, source="published")


# ------------------------------------------------------------------------------------------ notes


def _seed_note(seeds: Sequence[int]) -> str:
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."


def count_notes(
    lines: Sequence[TableRow], columns: Sequence[Column], protocols: Sequence[str] | None = None
) -> Iterator[str]:
    """Yield notes on the number of requests behind each group of columns, and who has fewer.

    Args:
        lines: Rows of a table.
        columns: Its columns.
        protocols: Protocol of each column, where a table has several.
    """
    heads = protocols or [""] * len(columns)
    counts: dict[tuple[str, str], int] = {}
    of_cell: dict[tuple[str, str, str], int] = {}
    for line in lines:
        for head, column, value in zip(heads, columns, line.values, strict=True):
            if value is not None and not column.is_time and line.source == "ours":
                group, n = (head, column.name.partition("/")[0]), value.mean.n
                counts[group] = max(counts.get(group, 0), n)
                place = (line.label, *group)
                of_cell[place] = min(of_cell.get(place, n), n)
    if counts and len(set(counts.values())) == 1:
        yield f"n = {next(iter(counts.values()))} requests."
    elif counts:
        yield "n, requests: " + ", ".join(_counted(counts)) + "."
    fewer = [
        " ".join(filter(None, (label, *group, str(n))))
        for (label, *group), n in of_cell.items()
        if n < counts[group[0], group[1]]
    ]
    if fewer:
        yield f"Fewer requests: {', '.join(fewer)}."


def _counted(counts: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Yield each protocol with its number where that of all its groups is one, else each group."""
    by_head: dict[str, dict[str, int]] = {}
    for (head, group), n in counts.items():
        by_head.setdefault(head, {})[group] = n
    for head, groups in by_head.items():
        if head and len(set(groups.values())) == 1:
            yield f"{head} {next(iter(groups.values()))}"
        else:
            yield from (f"{head} {group} {n}".lstrip() for group, n in groups.items())
