"""Summary of a benchmark: one table of several protocols for each model and data set.

The columns are the grid's ``summary``. Nothing here imports torch.
"""

from collections.abc import Sequence

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Grid
from lightning_edit.benchmark.outcomes import CellOutcome, values_of
from lightning_edit.benchmark.table import (
    STATUS_WORDS,
    Table,
    TableRow,
    Value,
    evaluation_points,
    group_by_method,
    mean_value,
    requests_at,
    time_value,
)
from lightning_edit.benchmark.tables import count_notes
from lightning_edit.functional.bootstrap import Resampling


def summaries_of(grid: Grid, outcomes: Sequence[CellOutcome]) -> list[Table]:
    """Build the summary tables of a benchmark; none if the grid names no columns for them.

    A method whose cell of a protocol is not done has no value there.

    Args:
        grid: The benchmark.
        outcomes: Its cells.
    """
    chosen = [(protocol, Column(name)) for protocol, name in grid.summary]
    if not chosen:
        return []
    places = dict.fromkeys((o.cell.model, o.cell.data) for o in outcomes)
    return [
        _summary(chosen, place, [o for o in outcomes if (o.cell.model, o.cell.data) == place])
        for place in places
    ]


def _summary(
    chosen: Sequence[tuple[str, Column]], place: tuple[str, str], outcomes: Sequence[CellOutcome]
) -> Table:
    columns = tuple(column for _, column in chosen)
    lines = tuple(
        _row(method, listed, chosen) for method, listed in group_by_method(outcomes).items()
    )
    model, data = place
    return Table(
        f"{model} · {data} · summary",
        tuple((protocol, *column.heads) for protocol, column in chosen),
        columns,
        lines,
        tuple(count_notes(lines, columns, [protocol for protocol, _ in chosen])),
        {"model": model, "data": data, "protocol": "summary", "after": "", "seeds": ""},
    )


def _row(
    method: str, outcomes: Sequence[CellOutcome], chosen: Sequence[tuple[str, Column]]
) -> TableRow:
    values = tuple(
        _value([o for o in outcomes if o.cell.protocol == protocol], column)
        for protocol, column in chosen
    )
    if any(values):
        return TableRow(method, values)
    status = next((o.status for o in outcomes), "open")
    return TableRow(method, values, STATUS_WORDS.get(status, status))


def _value(outcomes: Sequence[CellOutcome], column: Column) -> Value | None:
    """Return a method's value in a protocol, over its seeds; ``None`` if a cell is not done."""
    if not outcomes or any(o.status != "done" for o in outcomes):
        return None
    if column.is_time:
        return time_value(outcomes, column.name)
    last = max(max(evaluation_points(o)) for o in outcomes)
    requests = requests_at(outcomes, last)
    array = values_of(outcomes, last, column.name, requests)
    return mean_value(Resampling(len(requests), len(outcomes)), array)
