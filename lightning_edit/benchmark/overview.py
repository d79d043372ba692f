"""Panels of a benchmark's overview figure, from its tables. Nothing here imports torch."""

from collections.abc import Iterable

from lightning_edit.benchmark.table import Table, Value
from lightning_edit.report.overview_plot import OverviewPanel


def panels_of(tables: Iterable[Table]) -> list[OverviewPanel]:
    """Return a panel for the first table of every model, data and protocol.

    Times and logarithms are no shares, and are left out; so are published figures, which were
    measured elsewhere.

    Args:
        tables: Tables of a grid, curves too, which are left out.
    """
    firsts: dict[tuple[str, ...], Table] = {}
    for table in tables:
        place = table.place
        if len(set(table.columns)) == len(table.columns):  # a curve has one metric throughout
            firsts.setdefault((place["model"], place["data"], place["protocol"]), table)
    return [_panel(place, table) for place, table in firsts.items()]


def _panel(place: tuple[str, ...], table: Table) -> OverviewPanel:
    chosen = [number for number, column in enumerate(table.columns) if column.is_share]
    lines = [line for line in table.lines if line.source == "ours" and any(line.values)]
    values = [[line.values[number] for number in chosen] for line in lines]
    return OverviewPanel(
        " · ".join(place),
        tuple("\n".join(table.heads[number]) for number in chosen),
        tuple(line.label for line in lines),
        tuple(tuple(None if v is None else v.mean.value for v in row) for row in values),
        tuple(tuple(_half(v) for v in row) for row in values),
    )


def _half(value: Value | None) -> float | None:
    return value.mean.half if value is not None and value.spread else None
