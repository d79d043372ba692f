"""Curve tables of a benchmark: a metric over the number of edits. Nothing here imports torch."""

from collections.abc import Iterator, Sequence

from lightning_edit.benchmark.captions import curve_caption
from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Grid, Published
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
)
from lightning_edit.functional.bootstrap import Resampling


def curves(grid: Grid, outcomes: Sequence[CellOutcome], column: Column) -> Iterator[Table]:
    """Yield a table of a metric over the number of edits for each model, data and protocol."""
    keys = dict.fromkeys(_curve_key(outcome) for outcome in outcomes)
    for key in keys:
        here = [o for o in outcomes if _curve_key(o) == key]
        # A stream of 100 and one of 500 edits both pass 10: that is one column.
        places = sorted({after for o in here for after in evaluation_points(o)})
        if len(places) < 2:
            continue
        lines = [
            _curve_row(method, listed, column, places)
            for method, listed in group_by_method(here).items()
        ]
        model, data, kind, _ = key
        shown = [p for p in grid.published if (p.model, p.data) == (model, data)]
        protocols = {o.cell.protocol for o in here}
        shown = [p for p in shown if p.after in places and p.protocol in protocols]
        lines += _published_curves(shown, column, places)
        cited = [p for p in shown if any(column.name in each for each in p.values.values())]
        notes = [*missing_notes(group_by_method(here)), *dict.fromkeys(map(source_note, cited))]
        yield Table(
            f"{model} · {data} · {kind}: {column.name} by number of edits",
            tuple(("edits", str(after)) for after in places),
            (column,) * len(places),
            tuple(lines),
            tuple(notes),
            {"model": model, "data": data, "protocol": kind, "after": "", "seeds": ""},
            curve_caption(here[0].cell, column),
        )


def _published_curves(
    published: Sequence[Published], column: Column, places: Sequence[int]
) -> Iterator[TableRow]:
    rows: dict[str, dict[int, float]] = {}
    for each in published:
        for method, figures in each.values.items():
            if column.name in figures and each.after is not None:
                row = rows.setdefault(f"{method}, {each.label}", {})
                row[each.after] = figures[column.name]
    for label, found in rows.items():
        values = tuple(published_value(column, found[p]) if p in found else None for p in places)
        yield TableRow(label, values, source="published")


def _curve_key(outcome: CellOutcome) -> tuple[str, str, str, int]:
    options = outcome.cell.spec["protocol"]
    size = int(options.get("batch_size", 1)) if options["protocol"] == "sequential" else 0
    return outcome.cell.model, outcome.cell.data, str(options["protocol"]), size


def _curve_row(
    method: str,
    outcomes: Sequence[CellOutcome],
    column: Column,
    places: Sequence[int],
) -> TableRow:
    values: list[Value | None] = []
    for after in places:
        reached = [o for o in outcomes if after in o.points]
        here = [o for o in reached if o.cell.protocol == reached[0].cell.protocol]
        requests = requests_at(here, after)
        array = values_of(here, after, column.name, requests) if requests else None
        values.append(
            None if array is None else mean_value(Resampling(len(requests), len(here)), array)
        )
    lacking = next((o.status for o in outcomes if o.status != "done"), None)
    if any(values):
        return TableRow(method, tuple(values))
    return TableRow(method, tuple(values), STATUS_WORDS.get(lacking or "open", lacking or ""))
