"""Overview of a benchmark for papers: methods × aspects as a heat map, one panel a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.exceptions import DataError

#: From a weak score to a strong one, readable in grey and by the colour-blind.
_COLOURS = "cividis"
_DARK = 0.55  # of the scale: below it, figures are white


@dataclass(frozen=True)
class OverviewPanel:
    """One panel: the scores of some methods.

    Args:
        title: Model, data and protocol.
        heads: Names of the columns.
        rows: Names of the methods.
        values: Shares from 0 to 1, one list a method; ``None`` where nothing was measured.
        halves: Half of each share's 95 % interval; ``None`` where there is none.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    halves: tuple[tuple[float | None, ...], ...]


def plot_overview(panels: Sequence[OverviewPanel], across: int = 3) -> Any:
    """Plot panels of scores side by side; every cell holds its share in per cent and its interval.

    Args:
        panels: The panels; those without a score are left out.
        across: Number of panels in a row of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: If no panel has a score.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = [p for p in panels if any(v is not None for row in p.values for v in row)]
    if not shown:
        raise DataError("the overview has nothing to show: no cell has scores; run the grid first")
    across = min(across, len(shown))
    down = -(-len(shown) // across)
    height = 0.8 + 0.21 * max(len(panel.rows) for panel in shown)
    widest = max(len(panel.heads) for panel in shown)
    figure = Figure(figsize=(across * (1.5 + 0.52 * widest), down * height), layout="constrained")
    colours = colormaps[_COLOURS].with_extremes(bad="#EEEEEE")
    for axes, panel in zip(
        figure.subplots(down, across, squeeze=False).flat,
        [*shown, *[None] * (down * across - len(shown))],
        strict=True,
    ):
        if panel is None:
            axes.set_axis_off()
            continue
        numbers = [[float("nan") if v is None else v for v in row] for row in panel.values]
        axes.imshow(numbers, vmin=0, vmax=1, cmap=colours, aspect="auto")
        axes.set_title(panel.title, fontsize=8)
        axes.set_xticks(range(len(panel.heads)), panel.heads, fontsize=7)
        axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=7)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        for line, (values, halves) in enumerate(zip(panel.values, panel.halves, strict=True)):
            for place, (value, half) in enumerate(zip(values, halves, strict=True)):
                text = "–" if value is None else f"{100 * value:.0f}"
                if half is not None:
                    text += f" ±{100 * half:.0f}"
                colour = "white" if value is not None and value < _DARK else "black"
                axes.text(
                    place, line, text, ha="center", va="center", fontsize=6, color=colour
                )  # fmt: skip
    return figure
