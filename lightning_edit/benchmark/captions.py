"""Captions of benchmark tables in words, and their labels, for papers. No import of torch."""

import re
from collections.abc import Iterable, Sequence

from lightning_edit.benchmark.columns import Column
from lightning_edit.benchmark.grid import Cell

_ASPECTS = {
    "reliability": "the edited prompts",
    "generalization": "rewordings of them",
    "locality": "prompts that should be answered as before",
    "portability": "consequences of the edits",
    "understanding": "other forms of asking",
    "known": "unrelated facts",
}


def caption(cell: Cell, edits: int, columns: Sequence[Column], group: str = "") -> str:
    """Return the caption of a table of one model, data set and protocol.

    Args:
        cell: A cell of the table.
        edits: Number of edits at the evaluation that it shows.
        columns: Its columns.
        group: Title of its columns; may be empty.
    """
    scored = _scored(columns)
    return " ".join(
        (
            f"{_subject(group)} on {cell.data} with the model {cell.model}: {_how(cell, edits)}.",
            *([f"{scored}."] if scored else []),
        )
    )


def curve_caption(cell: Cell, column: Column) -> str:
    """Return the caption of a table of one metric over the number of edits.

    Args:
        cell: A cell of the table.
        column: The metric.
    """
    return (
        f"{column.name} by number of edits, on {cell.data} with the model {cell.model}: "
        f"{_how(cell, None)}. {_scored([column])}."
    )


def latex_label(title: str) -> str:
    r"""Return a LaTeX label for ``\ref``, of the letters and digits of a table's title.

    Args:
        title: Title of the table; titles of one grid differ.

    Example:
        >>> latex_label("gpt2 · zsre · batch100 · time")
        'tab:gpt2-zsre-batch100-time'
    """
    return "tab:" + "-".join(re.findall(r"[A-Za-z0-9@.]+", title)).lower()


def _subject(group: str) -> str:
    return f"Editing methods, {group}," if group else "Editing methods"


def _how(cell: Cell, edits: int | None) -> str:
    options = cell.spec["protocol"]
    kind, size = options["protocol"], int(options.get("batch_size") or 1)
    if kind == "single":
        return "each edit alone on the unedited model"
    number = "" if edits is None else f"{edits:,} edits "
    if kind == "batch":
        return f"{number or 'all edits '}written at once"
    row = "one after the other" if size == 1 else f"in batches of {size}, one after the other"
    return f"{number or 'edits '}written {row}"


def _scored(columns: Iterable[Column]) -> str:
    names = [one.name.partition("/")[0].partition(".")[0] for one in columns if not one.is_time]
    words = [f"{name}: {_ASPECTS[name]}" for name in dict.fromkeys(names)]
    modes = dict.fromkeys(one.name.partition("@")[2] for one in columns if not one.is_time)
    told = {"tf": "tf: teacher forced", "gen": "gen: generated text"}
    joined = "; ".join([*words, *(told[mode] for mode in modes)])
    return joined[:1].upper() + joined[1:]
