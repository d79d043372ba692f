"""Style of the figures for papers: column width, TrueType fonts, a colour-blind-safe palette."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_edit.exceptions import DataError

COLUMN_WIDTH = 3.4
"""Width in inches of one column of a two-column paper."""
#: Paul Tol's "bright" scheme, as on the page.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
STYLE: Any = {  # Matplotlib's stubs type each key as a literal
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.02,
}


class PaperFigure(Figure):
    """Matplotlib figure that is saved with the rcParams it was drawn with."""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Save the figure with embedded TrueType fonts.

        Args:
            fname: As for Matplotlib's ``savefig``.
            **kwargs: As for Matplotlib's ``savefig``.
        """
        with rc_context(STYLE):
            super().savefig(fname, **kwargs)


@contextmanager
def paper_figure(
    columns: int, rows: int, height: float
) -> Iterator[tuple[PaperFigure, list[Axes]]]:
    """Return a figure in the style of papers, and its axes, row by row.

    Args:
        columns: Number of panels side by side.
        rows: Number of panels above each other.
        height: Height of a panel in inches.
    """
    with rc_context(STYLE):
        size = (COLUMN_WIDTH * columns, height * rows)
        figure = PaperFigure(figsize=size, layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def require(found: object, what: str) -> None:
    """Check that there is something to draw.

    Args:
        found: What was found in the runs.
        what: What it is, in words.

    Raises:
        DataError: If it is empty.
    """
    if not found:
        raise DataError(f"the runs have no {what}; see `metrics` in their results.json")
