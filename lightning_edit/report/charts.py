"""Bokeh charts of the HTML page; the page's theme sets the colours of text and grid."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    ColumnDataSource,
    FactorRange,
    FixedTicker,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import TeeHead, Whisker
from bokeh.models.renderers import DataRenderer
from bokeh.transform import dodge

from lightning_edit.report.drawing import (
    BAR,
    BAR_LABEL,
    MARKERS,
    SHAPES,
    Drawing,
    Mark,
    escape_math,
    frame,
    hover,
    marker_index,
    percent_axis,
    series_colour,
    series_index,
)
from lightning_edit.report.series import AspectValue, Curve, Tradeoff, percent

BEFORE = "#9A9A9A"
"""Colour of the pristine model's values."""


def aspect_bars(
    named: Sequence[tuple[str, Sequence[AspectValue]]],
    order: Sequence[str] = (),
    unit: str = "requests",
) -> Drawing:
    """Draw aspects as a bar chart: before and after the edits, or several runs side by side.

    Args:
        named: Names and aspects of runs. A single run also gets its values before the edit.
        order: Names of all runs; their order sets the colours.
        unit: What ``n`` counts.
    """
    aspects = list(dict.fromkeys(value.aspect for _, values in named for value in values))
    bars = [
        (name, series_colour(series_index(name, order, fallback)), values, "after")
        for fallback, (name, values) in enumerate(named)
    ]
    if len(named) == 1 and any(value.before is not None for value in named[0][1]):
        values = named[0][1]
        bars = [("before", BEFORE, values, "before"), ("after", series_colour(0), values, "after")]
    step = 0.8 / len(bars)
    counted = any(value.interval for _, values in named for value in values)
    plot = frame(
        height=40 + len(aspects) * max(24, 13 * len(bars)),
        y_range=FactorRange(factors=aspects[::-1]),
        x_range=Range1d(start=0, end=1.45 if counted else 1.2),  # room for the last label
    )
    renderers: list[DataRenderer] = []
    for number, (name, colour, values, field) in enumerate(bars):
        shown = [value for value in values if getattr(value, field) is not None]
        source = ColumnDataSource(
            {
                "aspect": [value.aspect for value in shown],
                "measure": [value.measure for value in shown],
                "value": [getattr(value, field) for value in shown],
                "shown": [
                    percent(getattr(value, field), 0) + (f" (n {value.n:,})" if counted else "")
                    for value in shown
                ],
                "place": [
                    max((value.interval or (0, 0))[1], getattr(value, field)) for value in shown
                ],
                "n": [value.n for value in shown],
                "name": [name] * len(shown),
            }
        )
        place = dodge("aspect", 0.4 - step * (number + 0.5), range=plot.y_range)
        renderers.append(
            plot.hbar(
                y=place,
                right="value",
                height=step * 0.86,
                source=source,
                color=colour,
            )
        )
        plot.text(x="place", y=place, text="shown", source=source, **BAR_LABEL)
        known = [value for value in shown if value.interval]
        if known:
            ends = ColumnDataSource(
                {
                    "aspect": [value.aspect for value in known],
                    "low": [value.interval[0] for value in known if value.interval],
                    "high": [value.interval[1] for value in known if value.interval],
                }
            )
            _whisker(plot, "width", place, ends)
    tips = [("", "@name"), ("@aspect", "@value{0.0%}"), ("measure", "@measure"), (unit, "@n")]
    hover(plot, tips, renderers)
    percent_axis(plot.xaxis)
    plot.xaxis.ticker = FixedTicker(ticks=[0, 0.5, 1])
    plot.ygrid.visible = False
    legend = tuple(Mark(name, colour, BAR) for name, colour, _, _ in bars)
    return Drawing(plot, legend if len(bars) > 1 else ())


def lines(
    curves: Sequence[Curve],
    x_label: str,
    share: bool,
    log: bool = False,
    order: Sequence[str] = (),
) -> Drawing:
    """Draw a line chart of one metric over the course of runs.

    Args:
        curves: The lines.
        x_label: Label of the x axis.
        share: Whether the values are shares, 0 to 1.
        log: Whether the y axis is logarithmic.
        order: Names of all runs; their order sets the colours.
    """
    options: dict[str, Any] = {"y_axis_type": "log"} if log else {}
    if share:
        options["y_range"] = Range1d(start=-0.04, end=1.06)
    elif ends := [end for line in curves for pair in line.intervals for end in pair]:
        low, high = min(0.0, *ends), max(0.0, *ends)  # zero is no change
        room = 0.06 * (high - low) or 1.0
        options["y_range"] = Range1d(start=low - room * (low < 0), end=high + room)
    plot = frame(height=184, x_axis_label=x_label, **options)
    dots: list[DataRenderer] = []
    legend = []
    for fallback, line in enumerate(curves):
        number = series_index(line.label, order, fallback)
        colour = series_colour(number)
        columns: dict[str, Any] = {"x": line.x, "y": line.y, "name": [line.label] * len(line.x)}
        if line.intervals:
            columns["low"], columns["high"] = zip(*line.intervals, strict=True)
        if line.n:
            columns["n"] = line.n
        source = ColumnDataSource(columns)
        if line.intervals:
            _whisker(plot, "height", "x", source, colour)
        plot.line("x", "y", source=source, color=colour, line_width=2.5)
        marker = MARKERS[marker_index(number)]
        dots.append(plot.scatter("x", "y", source=source, color=colour, size=8, marker=marker))
        legend.append(Mark(line.label, colour, SHAPES[marker_index(number)]))
    value = "@y{0.0%}" if share else "@y{0.000 a}"
    counted = [("n", "@n")] if any(line.n for line in curves) else []
    hover(plot, [("", "@name"), (x_label, "@x"), ("value", value), *counted], dots)
    plot.xaxis.ticker = BasicTicker(min_interval=1)  # edits and steps are whole numbers
    if share:
        percent_axis(plot.yaxis)
    elif not log:
        plot.yaxis.formatter = BasicTickFormatter(power_limit_low=-5)
    plot.xgrid.visible = False
    return Drawing(plot, tuple(legend) if len(curves) > 1 else ())


def _whisker(
    plot: Any,
    dimension: Literal["width", "height"],
    base: Any,
    source: ColumnDataSource,
    colour: str = "#777777",
) -> None:
    """Draw the intervals of a source's columns ``low`` and ``high``."""
    head = TeeHead(size=6, line_color=colour)
    whisker = Whisker(
        base=base, lower="low", upper="high", source=source, dimension=dimension,
        line_color=colour, line_width=1.2, level="overlay",
        upper_head=head, lower_head=head.clone(),
    )  # fmt: skip
    plot.add_layout(whisker)


def tradeoff(points: Sequence[Tradeoff], order: Sequence[str] = ()) -> Drawing:
    """Draw a scatter plot of success against locality, one mark per run; upper right is best.

    Args:
        points: The marks.
        order: Names of all runs; their order sets colours and marks.
    """
    plot = frame(
        height=300,
        x_range=Range1d(start=-0.04, end=1.06),
        y_range=Range1d(start=-0.04, end=1.06),
        x_axis_label="locality: unchanged where nothing may change",
        y_axis_label="reliability: edits that hold",
    )
    marks: list[DataRenderer] = []
    legend = []
    for fallback, point in enumerate(points):
        number = series_index(point.label, order, fallback)
        source = ColumnDataSource(
            {"x": [point.locality], "y": [point.success], "name": [point.label], "n": [point.n]}
        )
        marks.append(
            plot.scatter(
                "x",
                "y",
                source=source,
                size=14,
                alpha=0.85,
                color=series_colour(number),
                marker=MARKERS[marker_index(number)],
            )
        )
        legend.append(Mark(point.label, series_colour(number), SHAPES[marker_index(number)]))
    tips = [("", "@name"), ("held", "@y{0.0%}"), ("unchanged", "@x{0.0%}"), ("requests", "@n")]
    hover(plot, tips, marks)
    percent_axis(plot.xaxis)
    percent_axis(plot.yaxis)
    return Drawing(plot, tuple(legend))


def bars(values: Sequence[tuple[str, float, str]], unit: str, order: Sequence[str] = ()) -> Drawing:
    """Draw a horizontal bar chart, one bar per name.

    Args:
        values: Name, value and value as text of each bar, from top to bottom; names must differ.
        unit: Unit of the values, for axis and hover.
        order: Names of all runs; their order sets the colours.
    """
    names = [escape_math(name) for name, _, _ in values]
    source = ColumnDataSource(
        {
            "name": names,
            "value": [value for _, value, _ in values],
            "shown": [text for _, _, text in values],
            "colour": [
                series_colour(series_index(name, order, fallback))
                for fallback, (name, _, _) in enumerate(values)
            ],
        }
    )
    plot = frame(
        height=56 + 30 * len(names),
        y_range=FactorRange(factors=names[::-1]),
        x_axis_label=unit,
        x_range=Range1d(start=0, end=1.35 * max(value for _, value, _ in values) or 1),
    )
    drawn = plot.hbar(y="name", right="value", height=0.62, color="colour", source=source)
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)
    if unit == "bytes":
        plot.xaxis.formatter = NumeralTickFormatter(format="0 b")
    plot.text(x="value", y="name", text="shown", source=source, **BAR_LABEL)
    hover(plot, [("", "@name"), ("", "@shown")], [drawn])
    plot.ygrid.visible = False
    return Drawing(plot)


def stacked(values: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Drawing:
    """Draw a stacked bar chart, one bar per name.

    Args:
        values: Name and parts (by part name) of each bar, from top to bottom; names must differ.
        unit: Unit of the values, for axis and hover.
    """
    names = [escape_math(name) for name, _ in values]
    parts = list(dict.fromkeys(part for _, found in values for part in found))
    columns = {part: [found.get(part, 0.0) for _, found in values] for part in parts}
    plot = frame(height=96 + 30 * len(names), y_range=FactorRange(factors=names[::-1]))
    plot.xaxis.axis_label = unit
    drawn = plot.hbar_stack(
        parts,
        y="name",
        height=0.62,
        color=[series_colour(number) for number in range(len(parts))],
        source=ColumnDataSource(columns | {"name": names}),
    )
    for part, renderer in zip(parts, drawn, strict=True):
        hover(plot, [("", "@name"), (part, f"@{{{part}}}{{0.0000}} {unit}")], [renderer])
    plot.ygrid.visible = False
    return Drawing(plot, tuple(Mark(p, series_colour(i), BAR) for i, p in enumerate(parts)))
