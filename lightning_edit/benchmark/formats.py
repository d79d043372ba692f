"""Output formats of benchmark tables: text, Markdown, LaTeX, CSV, JSON. No import of torch."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lightning_edit.benchmark.captions import latex_label
from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Grid
from lightning_edit.benchmark.table import Table, TableRow, Value
from lightning_edit.report.console import VisibleConsole

FORMATS = ("text", "markdown", "latex", "csv", "json")

LEGEND = (
    "Rel reliability, Gen generalization, Loc locality, Port portability. em: right answers; "
    "token: right answer tokens; kept: as before editing; tf: teacher forced; gen: the model's own "
    "text. Shares in per cent ± half of a 95 % interval over requests{seeds}; {mark}: "
    "better than every other method by more than the paired difference's interval. s/edit: wall "
    "time of editing, without scoring."
)


def legend(seeds: int, mark: str) -> str:
    """Return the legend of the tables: column headers and the mark of the best method."""
    return LEGEND.format(seeds=" and seeds" if seeds > 1 else "", mark=mark)


def _format_value(value: Value | None, column: Column, decimals: int, sign: str = "±") -> str:
    if value is None:
        return "–"
    # Keep one decimal of published figures (they have n = 0).
    text = column.format_value(value.mean.value, decimals if value.mean.n else 1)
    return f"{text}{sign}{column.format_value(value.mean.half, decimals)}" if value.spread else text


# ------------------------------------------------------------------------------------------- text


def text(tables: Sequence[Table], width: int) -> str:
    """Render tables as text for a terminal.

    Args:
        tables: The tables.
        width: Width of the terminal in characters; a wider table is split into parts.
    """
    stream = io.StringIO()
    console = VisibleConsole(file=stream, width=width, highlight=False)
    for table in tables:
        for part in _split_to_width(table, width):
            console.print(part)
        for note in table.notes:
            console.print(Text(f"  {note}"))
        console.print()
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _split_to_width(table: Table, width: int) -> Iterable[RichTable]:
    """Split a table into parts that fit the width; every part repeats the method names."""
    label = max(len(line.label) for line in table.lines)
    body = [_row_texts(line, table) for line in table.lines]
    widths = [
        max([len(word) for word in heads] + [len(row[number]) for row in body])
        for number, heads in enumerate(table.heads)
    ]
    part: list[int] = []
    used = label
    for number, wide in enumerate(widths):
        if part and used + wide + 2 > width:
            yield _render_part(table, body, part)
            part, used = [], label
        part.append(number)
        used += wide + 2
    yield _render_part(table, body, part)


def _row_texts(line: TableRow, table: Table) -> list[str]:
    cells = []
    for value, column in _cells(line, table):
        written = _format_value(value, column, table.decimals)
        cells.append(f"{written}*" if value is not None and value.best else written)
    return [line.reason, *cells[1:]] if line.reason else cells


def _cells(line: TableRow, table: Table) -> Iterable[tuple[Value | None, Column]]:
    return zip(line.values, table.columns, strict=True)


def _render_part(table: Table, body: Sequence[Sequence[str]], part: Sequence[int]) -> RichTable:
    shown = RichTable(
        title=table.title + (" (continued)" if part[0] > 0 else ""),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("", no_wrap=True)
    for number in part:
        shown.add_column("\n".join(table.heads[number]), justify="right", no_wrap=True)
    before = table.lines[0].source
    for line, row in zip(table.lines, body, strict=True):
        if before != line.source:
            shown.add_section()
        before = line.source
        shown.add_row(line.label, *(row[number] for number in part))
    return shown


# --------------------------------------------------------------------------------------- Markdown


def markdown(tables: Sequence[Table]) -> str:
    """Render tables as GitHub Markdown."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    heads = [" ".join(heads) for heads in table.heads]
    rows = [f"### {_escape_markdown(table.title)}", ""]
    rows.append("| method | " + " | ".join(_escape_markdown(head) for head in heads) + " |")
    rows.append("|---|" + "---:|" * len(heads))
    for line in table.lines:
        cells = [
            f"**{written}**" if value is not None and value.best else written
            for value, column in _cells(line, table)
            for written in [_format_value(value, column, table.decimals, " ± ")]
        ]
        label = f"{line.label} ({line.reason})" if line.reason else line.label
        rows.append(f"| {_escape_markdown(label)} | " + " | ".join(cells) + " |")
    rows += [""] + [f"* {_escape_markdown(note)}" for note in table.notes] + [""]
    return "\n".join(rows)


def _escape_markdown(words: str) -> str:
    for sign in "\\|*_`<":
        words = words.replace(sign, f"\\{sign}")
    return " ".join(words.split())


# ------------------------------------------------------------------------------------------ LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "·": r"$\cdot$",
    "×": r"$\times$",
}


#: End of every caption: what stands in a cell.
_LATEX_LEGEND = (
    r"Shares in per cent $\pm$ half of a 95\% interval over requests; bold: better than every "
    "other method by more than the interval of their paired difference."
)


def escape_latex(words: str) -> str:
    """Escape LaTeX special characters."""
    return "".join(_LATEX.get(sign, sign) for sign in words)


def latex(tables: Sequence[Table]) -> str:
    r"""Render tables as LaTeX for ``\usepackage{booktabs}``."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    depth = max(len(heads) for heads in table.heads)
    rows = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escape_latex(table.caption or table.title)} {_LATEX_LEGEND}}}",
        f"  \\label{{{latex_label(table.title)}}}",
    ]
    rows += [f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"    \toprule"]
    for level in range(depth):
        words = [heads[level] if level < len(heads) else "" for heads in table.heads]
        rows.append("    " + " & ".join(["", *map(escape_latex, words)]) + r" \\")
    rows.append(r"    \midrule")
    before = table.lines[0].source
    for line in table.lines:
        if line.source != before:
            rows.append(r"    \midrule")
        before = line.source
        cells = []
        for value, column in _cells(line, table):
            written = escape_latex(_format_value(value, column, table.decimals))
            best = value is not None and value.best
            cells.append(f"\\textbf{{{written}}}" if best else written)
        label = f"{line.label} ({line.reason})" if line.reason else line.label
        rows.append("    " + " & ".join([escape_latex(label), *cells]) + r" \\")
    rows += [r"    \bottomrule", r"  \end{tabular}"]
    notes = [escape_latex(" ".join(note.split())) for note in table.notes]
    rows += [f"  \\par\\footnotesize {note}" for note in notes]
    return "\n".join([*rows, r"\end{table}", ""])


# ----------------------------------------------------------------------------------- CSV and JSON

_FIELDS = ("title", "model", "data", "protocol", "after", "seeds", "method", "source", "column")
_VALUE_FIELDS = ("value", "low", "high", "n", "best", "reason")


def entries(tables: Sequence[Table]) -> Iterable[dict[str, Any]]:
    """Yield one record per table value, unrounded; a missing value with its reason."""
    for table in tables:
        for line in table.lines:
            for (value, column), heads in zip(_cells(line, table), table.heads, strict=True):
                if value is None and not line.reason:
                    continue
                entry: dict[str, Any] = {"title": table.title, **table.place}
                entry |= {"method": line.label, "source": line.source, "column": column.name}
                if heads[0] == "edits":
                    entry["after"] = heads[1]
                entry |= dict.fromkeys(_VALUE_FIELDS) | {"reason": line.reason or None}
                if value is not None:
                    mean = value.mean
                    entry |= {"value": mean.value, "n": mean.n or None, "best": value.best}
                    if value.spread:
                        entry |= {"low": mean.low, "high": mean.high}
                yield entry


def as_csv(tables: Sequence[Table]) -> str:
    """Render tables as CSV in long form, one row per value, for spreadsheets and plots."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*_FIELDS, *_VALUE_FIELDS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries(tables))
    return stream.getvalue()


def as_json(tables: Sequence[Table]) -> str:
    """Render tables as JSON, with the same records as :func:`as_csv`."""
    return json.dumps(list(entries(tables)), indent=1, ensure_ascii=False) + "\n"


def write(tables: Sequence[Table], form: str, width: int, seeds: int, grid: Grid) -> str:
    """Render tables in one of the formats; text, Markdown and LaTeX also get note and legend.

    Args:
        tables: The tables.
        form: One of :data:`FORMATS`.
        width: Width of the terminal in characters, for text.
        seeds: Number of seeds, for the legend.
        grid: The benchmark of the tables.
    """
    if form == "csv":
        return as_csv(tables)
    if form == "json":
        return as_json(tables)
    if form == "markdown":
        below = [grid.note, legend(seeds, "bold")]
        paragraphs = [_escape_markdown(paragraph) for paragraph in below if paragraph]
        return "\n".join([f"## {grid.title}", "", markdown(tables), "\n\n".join(paragraphs), ""])
    if form == "latex":
        below = [line for words in (grid.note, legend(seeds, "bold")) for line in words.split("\n")]
        return latex(tables) + "".join(f"% {line}\n" for line in below if line)
    stream = io.StringIO()
    console = VisibleConsole(file=stream, width=width, highlight=False)
    for words in (grid.note, legend(seeds, "*")):
        if words:
            console.print(Text(" ".join(words.split())))
    return text(tables, width) + stream.getvalue()
