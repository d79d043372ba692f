"""Shared style of the page's Bokeh charts: frame, colour palette, markers, hover tooltips.

Text from users reaches Bokeh only as tooltip data and as axis labels, which Bokeh shows as plain
text. Legends are part of the page: they wrap on narrow screens, Bokeh's do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.core.properties import value
from bokeh.models import HoverTool, NumeralTickFormatter
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure

#: Paul Tol's "bright" scheme: safe for colour-blind readers, and readable on light and dark
#: backgrounds.
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
FONT = "system-ui, sans-serif"
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
SHAPES = "●■▲◆▼⬢★"
BAR = "■"


@dataclass(frozen=True)
class Mark:
    """A legend entry.

    Args:
        name: Name of the series.
        colour: Its colour.
        shape: Its marker, one character.
    """

    name: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Drawing:
    """A Bokeh chart and its legend.

    Args:
        plot: The Bokeh figure.
        legend: Its legend; empty for a single series.
    """

    plot: figure
    legend: tuple[Mark, ...] = ()


def series_index(name: str, order: Sequence[str], fallback: int) -> int:
    """Return the index of a run among all runs, so that its colour is the same in every chart."""
    return order.index(name) if name in order else fallback


def series_colour(number: int) -> str:
    """Return the palette colour of the series with this index."""
    return PALETTE[number % len(PALETTE)]


def marker_index(number: int) -> int:
    """Return the index of a series' marker in :data:`MARKERS` and :data:`SHAPES`."""
    # Shifted by one on each round of the palette: 49 distinct pairs of colour and marker.
    return (number + number // len(PALETTE)) % len(MARKERS)


#: Text style of the value label at the end of a bar; the page's theme sets its colour.
BAR_LABEL: dict[str, Any] = {
    "x_offset": 5,
    "text_baseline": "middle",
    "text_font": value(FONT),
    "text_font_size": "11px",
}


def frame(height: int, **options: Any) -> figure:
    """Return an empty Bokeh figure in the style of the page, as wide as its container.

    Args:
        height: Height in pixels.
        **options: Further arguments of Bokeh's ``figure``.
    """
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        output_backend="canvas",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_right=18,
        **options,
    )
    plot.axis.axis_label_text_font_style = "normal"
    for part in ("axis_label", "major_label"):
        setattr(plot.axis, f"{part}_text_font", FONT)
        setattr(plot.axis, f"{part}_text_font_size", "12px")
    plot.axis.axis_line_color = None
    plot.axis.major_tick_line_color = None
    plot.axis.minor_tick_line_color = None
    return plot


def hover(plot: figure, tooltips: list[tuple[str, str]], renderers: list[DataRenderer]) -> None:
    """Add hover tooltips to a chart.

    Args:
        plot: The chart.
        tooltips: Labels and values, in Bokeh's tooltip syntax.
        renderers: Glyphs that show a tooltip.
    """
    plot.add_tools(
        HoverTool(
            tooltips=tooltips,
            renderers=renderers,
            point_policy="snap_to_data",
            attachment="vertical",  # a phone has no room to the left or right of a point
        )
    )


def percent_axis(axis: Any) -> None:
    """Format the ticks of an axis as percentages."""
    axis.formatter = NumeralTickFormatter(format="0%")


def escape_math(text: str) -> str:
    """Escape ``$$`` in an axis label, which Bokeh would typeset as a LaTeX formula."""
    return text.replace("$$", "$\u200b$")
