"""Table of a study: aspects and their harmonic mean, one choice of settings a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from lightning_edit.analysis.sweep.layers import RankedTrial
from lightning_edit.analysis.sweep.measure import ASPECTS, measure_of
from lightning_edit.types import Mode

BEST, TIED = "★", "≈"
"""Marks of the best row, and of rows that tie with it."""


@dataclass(frozen=True)
class ScoreRow:
    """One row of :func:`score_table`.

    Args:
        mark: Mark at its left, such as :data:`BEST`; may be empty.
        name: What was tried, such as the layers.
        means: Mean over cases by aspect.
        score: Harmonic mean of the means.
        spread: Standard error of ``score``; ``None`` if no row has one.
        seconds: Seconds to compute one edit; ``None`` if no row has them.
    """

    mark: str
    name: str
    means: Mapping[str, float]
    score: float
    spread: float | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, mark: str, name: str, one: RankedTrial) -> "ScoreRow":
        """Return the row of a ranked trial.

        Args:
            mark: Its mark.
            name: What was tried.
            one: The trial.
        """
        return cls(mark, name, one.means, one.score, one.spread, one.tried.seconds)


def score_table(title: str, what: str, rows: Sequence[ScoreRow], mode: Mode) -> Table:
    """Return the table of a study: mark, name, aspects, harmonic mean, its spread, time.

    Args:
        title: Title, with markup escaped.
        what: Header of the names, such as ``layers``.
        rows: At least one row; the first one decides which columns there are.
        mode: Scoring mode of the study.
    """
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column(what, justify="right")
    aspects = [aspect for aspect in ASPECTS if aspect in rows[0].means]
    for aspect in aspects:
        header = f"{aspect}\n{measure_of(aspect, mode)}"
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("harmonic\nmean", justify="right", style="bold", no_wrap=True)
    if rows[0].spread is not None:
        table.add_column("±", justify="right", style="dim", no_wrap=True)
    if rows[0].seconds is not None:
        table.add_column("s/edit", justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row.means[aspect]:.3f}" for aspect in aspects]
        cells.append(f"{row.score:.3f}")
        cells += [] if row.spread is None else [f"{row.spread:.3f}"]
        cells += [] if row.seconds is None else [f"{row.seconds:.2g}"]
        table.add_row(row.mark, row.name, *cells, style="bold green" if row.mark == BEST else None)
    return table
