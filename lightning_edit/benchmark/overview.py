"""Panels of a benchmark's figures and page, from its tables. Nothing here imports torch."""

from collections.abc import Iterable

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.table import Table, TableRow, Value
from lightning_edit.report.panels import Panel


def first_tables(tables: Iterable[Table]) -> list[Table]:
    """Return the first table of every model, data and protocol; curves are left out.

    Args:
        tables: Tables of a grid.
    """
    firsts: dict[tuple[str, ...], Table] = {}
    for table in tables:
        place = table.place
        if len(set(table.columns)) == len(table.columns):  # a curve has one metric throughout
            firsts.setdefault((place["model"], place["data"], place["protocol"]), table)
    return list(firsts.values())


def panel_of(table: Table, shares_only: bool = False) -> Panel:
    """Return a table as a panel: its own lines, coloured where a value is a share.

    Published figures, which were measured elsewhere, and the row before editing are left out of a
    panel of shares only, and so are times and logarithms.

    Args:
        table: The table.
        shares_only: Whether the panel is for the overview figure.
    """
    chosen = [n for n, column in enumerate(table.columns) if column.is_share or not shares_only]
    lines = [
        line
        for line in table.lines
        if not shares_only or (line.source == "ours" and any(line.values[n] for n in chosen))
    ]
    cells = [[(line.values[n], table.columns[n]) for n in chosen] for line in lines]
    place = table.place
    short = (place["model"], place["data"], place["protocol"])
    return Panel(
        " · ".join(short) if shares_only else table.title,
        tuple("\n".join(table.heads[number]) for number in chosen),
        tuple(_label(line) for line in lines),
        tuple(tuple(_share(value, column) for value, column in row) for row in cells),
        tuple(tuple(_text(value, column, table) for value, column in row) for row in cells),
        tuple(note.strip() for note in table.notes),
    )


def _label(line: TableRow) -> str:
    return f"{line.label} ({line.reason})" if line.reason else line.label


def _share(value: Value | None, column: Column) -> float | None:
    return value.mean.value if value is not None and column.is_share else None


def _text(value: Value | None, column: Column, table: Table) -> str:
    if value is None:
        return "–"
    text = column.format_value(value.mean.value, table.decimals if value.mean.n else 1)
    half = column.format_value(value.mean.half, table.decimals)
    return f"{text} ±{half}" if value.spread else text
