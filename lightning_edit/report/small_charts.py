"""Small multiples: charts of one section that share a card, a legend, an axis and a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.embed import json_item
from bokeh.models import BasicTicker, BasicTickFormatter, ColumnDataSource, FixedTicker, Range1d
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure

from lightning_edit.report import series
from lightning_edit.report.drawing import (
    MARKERS,
    SHAPES,
    Mark,
    frame,
    hover,
    marker_index,
    percent_axis,
    series_colour,
    series_index,
)
from lightning_edit.report.flat import Drawn, divide, flat_sentence
from lightning_edit.report.names import MetricInfo
from lightning_edit.report.series import Curve

#: Pixels of a small chart.
_HEIGHT = 106
_FONT_SIZE = "10px"
#: The last number of edits over the first one from which on the axis is logarithmic.
_WIDE = 50


@dataclass(frozen=True)
class SmallChart:
    """One of several small charts.

    Args:
        id: Id of its HTML element.
        title: What it shows.
        note: Its definition; may be empty.
        plot: The Bokeh figure.
    """

    id: str
    title: str
    note: str
    plot: figure

    def item(self) -> Any:
        """Return the Bokeh JSON item that BokehJS renders."""
        return json_item(self.plot)


@dataclass(frozen=True)
class Multiples:
    """Small charts in one card.

    Args:
        id: Id of its HTML element.
        title: What they have in common, for the table of their numbers.
        x_label: Label of the x axis that they share.
        charts: The small charts.
        legend: The legend that they share; empty for a single run.
        header: Column names of their data table.
        rows: Rows of their data table, of flat series too.
        flat: Sentence on the series that do not move; may be empty.
    """

    id: str
    title: str
    x_label: str
    charts: tuple[SmallChart, ...]
    legend: tuple[Mark, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    flat: str


def small_multiples(
    name: str, title: str, found: Sequence[Drawn], x_label: str, order: Sequence[str]
) -> Multiples | None:
    """Build the card of several metrics over one axis.

    Args:
        name: Id of its HTML element, and the beginning of its charts' ids.
        title: What the metrics have in common.
        found: Metrics and their curves.
        x_label: Label of the x axis.
        order: Names of all runs; their order sets the colours.

    Returns:
        ``None`` if there is no metric.
    """
    if not found:
        return None
    moving, flat = divide(found)
    drawn = [
        SmallChart(f"{name}-{number}", info.title, info.note, small_lines(info, lines, order))
        for number, (info, lines) in enumerate(moving)
    ]
    labels = dict.fromkeys(line.label for _, lines in moving for line in lines)
    marks = [(label, series_index(label, order, place)) for place, label in enumerate(labels)]
    legend = [Mark(label, series_colour(n), SHAPES[marker_index(n)]) for label, n in marks]
    rows = tuple(
        (info.title, line.label, f"{x:g}", info.show(y))
        for info, lines in found
        for line in lines
        for x, y in zip(line.x, line.y, strict=True)
    )
    return Multiples(
        name,
        title,
        x_label,
        tuple(drawn),
        tuple(legend) if len(legend) > 1 else (),
        ("metric", "run", x_label, "value"),
        rows,
        flat_sentence(flat),
    )


def needs_log_edits(curves: Sequence[Curve]) -> bool:
    """Return whether numbers of edits span so much that a logarithmic axis tells them apart.

    Args:
        curves: The curves.
    """
    places = {x for line in curves for x in line.x if x > 0}
    return len(places) > 2 and max(places) >= _WIDE * min(places)


def without_start(line: Curve) -> Curve:
    """Return a curve without its value before the first edit, for a logarithmic axis."""
    kept = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x > 0]
    return Curve(line.label, tuple(x for x, _ in kept), tuple(y for _, y in kept))


def small_lines(info: MetricInfo, curves: Sequence[Curve], order: Sequence[str]) -> figure:
    """Draw one metric small: few ticks, no axis labels.

    Args:
        info: The metric.
        curves: Its curves.
        order: Names of all runs; their order sets the colours.
    """
    log = info.log and series.needs_log_axis([y for line in curves for y in line.y])
    options: dict[str, Any] = {"y_axis_type": "log"} if log else {}
    wide = needs_log_edits(curves)
    if wide:  # or the first points lie on each other at the lower left
        options["x_axis_type"] = "log"
        curves = [without_start(line) for line in curves]
    if info.share:
        options["y_range"] = Range1d(start=-0.08, end=1.08)
    plot = frame(height=_HEIGHT, **options)
    dots: list[DataRenderer] = []
    for place, line in enumerate(curves):
        number = series_index(line.label, order, place)
        colour, marker = series_colour(number), MARKERS[marker_index(number)]
        source = ColumnDataSource({"x": line.x, "y": line.y, "name": [line.label] * len(line.x)})
        plot.line("x", "y", source=source, color=colour, line_width=2)
        dots.append(plot.scatter("x", "y", source=source, color=colour, size=5, marker=marker))
    value = "@y{0.0%}" if info.share else "@y{0.000 a}"
    hover(plot, [("", "@name"), ("edits", "@x"), ("value", value)], dots)
    plot.axis.major_label_text_font_size = _FONT_SIZE
    if wide:
        plot.xaxis.ticker = FixedTicker(ticks=sorted({x for line in curves for x in line.x}))
        plot.xaxis.formatter = BasicTickFormatter(use_scientific=False)
    else:
        plot.xaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=3)
    if info.share:
        percent_axis(plot.yaxis)
        plot.yaxis.ticker = FixedTicker(ticks=[0, 0.5, 1])
    elif not log:
        plot.yaxis.formatter = BasicTickFormatter(power_limit_low=-4)
        plot.yaxis.ticker = BasicTicker(desired_num_ticks=3)
    plot.xgrid.visible = False
    return plot
