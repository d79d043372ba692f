"""Overview of a benchmark for papers: methods × columns as heat maps, one panel a table."""

from collections.abc import Sequence
from typing import Any

from lightning_edit.exceptions import DataError
from lightning_edit.report.panels import Panel, ground, ink

#: Inches: of a column, of a row, of a method's name, of a panel's heads and title.
_COLUMN, _ROW, _NAMES, _HEADS = 0.52, 0.21, 0.9, 0.75
#: Fonts that LaTeX and publishers take: TrueType, not Type 3.
_STYLE: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}


def plot_overview(panels: Sequence[Panel], across: int = 3) -> Any:
    """Plot panels of scores side by side; every cell holds its share in per cent and its interval.

    A column without shares, such as a time, is text without colour. Below each panel stands what
    its notes say of the number of requests.

    Args:
        panels: The panels; those without a score are left out.
        across: Number of panels in a row of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: If no panel has a score.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    class Overview(Figure):
        def savefig(self, fname: Any, **kwargs: Any) -> None:
            with rc_context(_STYLE):
                super().savefig(fname, **kwargs)

    shown = [panel for panel in panels if panel.has_scores]
    if not shown:
        raise DataError("the overview has nothing to show: no cell has scores; run the grid first")
    across = min(across, len(shown))
    down = -(-len(shown) // across)
    height = _HEADS + _ROW * max(len(panel.rows) for panel in shown)
    widest = max(len(panel.heads) for panel in shown)
    figure = Overview(figsize=(across * (_NAMES + _COLUMN * widest), down * height))
    figure.set_layout_engine("constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, panel in zip(places, shown, strict=False):
        _draw(axes, panel)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.patches import Rectangle

    axes.set_xlim(-0.5, len(panel.heads) - 0.5)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_title(panel.title, fontsize=8)
    axes.set_xticks(range(len(panel.heads)), panel.heads, fontsize=6)
    axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=7)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    counted = [note for note in panel.notes if note.startswith("n")]
    axes.set_xlabel(" ".join(counted), fontsize=5, color="#444444")
    for line, (values, texts) in enumerate(zip(panel.values, panel.texts, strict=True)):
        for place, (value, text) in enumerate(zip(values, texts, strict=True)):
            colour = "#F4F4F4" if value is None else ground(value)
            box = Rectangle((place - 0.5, line - 0.5), 1, 1, color=colour, linewidth=0)
            axes.add_patch(box)
            black = "#000000" if value is None else ink(value)
            axes.text(place, line, text, ha="center", va="center", fontsize=6, color=black)
