"""Measures over numbers of edits. Nothing here imports torch."""

from collections.abc import Iterator, Sequence

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Grid, Published
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
from lightning_edit.functional.bootstrap import Resampling


def curves(grid: Grid, outcomes: Sequence[CellOutcome], column: Column) -> Iterator[Table]:
    """Yield, for each model, data and way of writing, a measure over numbers of edits."""
    ways = dict.fromkeys(_way(outcome) for outcome in outcomes)
    for way in ways:
        here = [o for o in outcomes if _way(o) == way]
        places = sorted({(after, o.cell.protocol) for o in here for after in points_of(o)})
        if len(places) < 2:
            continue
        lines = [
            _curve_line(method, listed, column, places)
            for method, listed in by_method(here).items()
        ]
        model, data, kind, _ = way
        shown = [p for p in grid.published if (p.model, p.data) == (model, data)]
        shown = [p for p in shown if (p.after, p.protocol) in places]
        lines += _published_curves(shown, column, places)
        said = [p for p in shown if any(column.name in each for each in p.values.values())]
        notes = [*missing(by_method(here)), *dict.fromkeys(map(conditions, said))]
        yield Table(
            f"{model} · {data} · {kind}: {column.name} by number of edits",
            tuple(("edits", str(after)) for after, _ in places),
            (column,) * len(places),
            tuple(lines),
            tuple(notes),
            {"model": model, "data": data, "protocol": kind, "after": "", "seeds": ""},
        )


def _published_curves(
    published: Sequence[Published], column: Column, places: Sequence[tuple[int, str]]
) -> Iterator[Line]:
    rows: dict[str, dict[tuple[int, str], float]] = {}
    for each in published:
        for method, figures in each.values.items():
            if column.name in figures and each.after is not None:
                place = (each.after, each.protocol)
                rows.setdefault(f"{method}, {each.label}", {})[place] = figures[column.name]
    for label, row in rows.items():
        values = tuple(figure_of(column, row[p]) if p in row else None for p in places)
        yield Line(label, values, source="published")


def _way(outcome: CellOutcome) -> tuple[str, str, str, int]:
    options = outcome.cell.spec["protocol"]
    size = int(options.get("batch_size", 1)) if options["protocol"] == "sequential" else 0
    return outcome.cell.model, outcome.cell.data, str(options["protocol"]), size


def _curve_line(
    method: str,
    outcomes: Sequence[CellOutcome],
    column: Column,
    places: Sequence[tuple[int, str]],
) -> Line:
    values: list[Value | None] = []
    for after, protocol in places:
        here = [o for o in outcomes if o.cell.protocol == protocol and after in o.points]
        requests = requests_at(here, after)
        array = values_of(here, after, column.name, requests) if requests else None
        values.append(
            None if array is None else value_of(Resampling(len(requests), len(here)), array)
        )
    lacking = next((o.status for o in outcomes if o.status != "done"), None)
    if any(values):
        return Line(method, tuple(values))
    return Line(method, tuple(values), SHOWN.get(lacking or "open", lacking or ""))
