"""Matplotlib figures for papers, drawn from the same series as the HTML page.

Each function takes one or several run folders and returns a figure without a title (papers use a
caption) at the width of a column. Nothing here imports torch. Matplotlib's global state is not
changed: style and fonts travel with the figure.

Example::

    from lightning_edit import report

    report.plot_aspects(["runs/rome", "runs/memit"]).savefig("aspects.pdf")
"""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lightning_edit.report import series
from lightning_edit.report.figure_style import COLOURS, paper_figure, require
from lightning_edit.report.names import MetricInfo, leading_metrics
from lightning_edit.report.runs import RunsLike, as_runs
from lightning_edit.report.sequence import choose_metrics, metric_curves
from lightning_edit.report.series import Curve
from lightning_edit.types import Mode

_MARKERS = "os^Dv*P"
_BEFORE = "#BBBBBB"


def plot_aspects(runs: RunsLike, mode: Mode = "gen") -> Figure:
    """Plot the aspects as a bar chart: before and after for one run, side by side for several.

    Args:
        runs: One run or several: folders, or :class:`~lightning_edit.report.runs.Run` objects.
        mode: ``gen`` or ``tf``.

    Raises:
        DataError: If the runs were not scored in this mode.
    """
    listed = as_runs(runs)
    named = [(run.label, series.aspects(run, mode)) for run in listed]
    named = [(name, values) for name, values in named if values]
    require(named, f"aspects in mode {mode!r}")
    aspects = list(dict.fromkeys(value.aspect for _, values in named for value in values))
    groups = [(name, {v.aspect: v.after for v in values}) for name, values in named]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(groups))]
    if len(named) == 1:
        before = {v.aspect: v.before for v in named[0][1] if v.before is not None}
        groups = [("before", before), ("after", groups[0][1])]
        colours = [_BEFORE, COLOURS[0]]
    height = 0.4 + len(aspects) * (0.12 + 0.14 * len(groups))
    with paper_figure(1, 1, height) as (figure, (axes,)):
        step = 0.8 / len(groups)
        for number, ((name, found), colour) in enumerate(zip(groups, colours, strict=True)):
            shown = [aspect for aspect in aspects if aspect in found]
            places = [aspects.index(a) - 0.4 + step * (number + 0.5) for a in shown]
            axes.barh(places, [found[a] for a in shown], step * 0.9, label=name, color=colour)
        axes.set_yticks(range(len(aspects)), aspects)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.02)
        _percent_axis(axes, "x")
        _legend(figure, axes)
    return figure


def plot_curves(runs: RunsLike, mode: Mode = "gen", over: str = "sequence") -> Figure:
    """Plot the aspects as curves over the number of edits.

    Args:
        runs: One run or several.
        mode: ``gen`` or ``tf``.
        over: ``sequence``: over the course of each run. ``batch``: over the size of the batch, one
            line per editor.

    Raises:
        ValueError: If ``over`` is neither of these.
        DataError: If no run was evaluated at two points.
    """
    kinds = {"sequence": "edits, one after the other", "batch": "edits at once"}
    if over not in kinds:
        raise ValueError(f"`over` must be one of {', '.join(kinds)}, got {over!r}")
    listed = as_runs(runs)
    found = [
        (aspect, series.leading_curves(listed, aspect, mode, over)) for aspect in series.ASPECTS
    ]
    panels = [(MetricInfo(aspect, share=True), curves) for aspect, curves in found if curves]
    require(panels, f"curves over the {over} in mode {mode!r}")
    return _draw_panels(panels, kinds[over])


def plot_drift(runs: RunsLike, names: Sequence[str] = ()) -> Figure:
    """Plot model drift and collapse over a sequence of edits, one panel a metric.

    Args:
        runs: One run or several.
        names: The panels, in this order: full names of metrics (``collapse/perplexity_ratio``),
            families (``drift``) or measures (``retention``); default: the leading metrics of
            ``drift`` and ``collapse`` that were measured and are no counters.

    Raises:
        DataError: If no run was measured at two points, or a name is of no metric; it lists them.

    Example::

        plot_drift("runs/memit", ["retention", "perplexity_ratio"]).savefig("drift.pdf")
    """
    listed = as_runs(runs)
    known = series.metric_names(listed, "drift", "collapse", "overfitting")
    leading = leading_metrics(series.metric_names(listed, "drift", "collapse"))
    require(known, "drift or collapse at two points")
    found = metric_curves(listed, choose_metrics(known, names) if names else leading)
    panels = [(info, curves) for info, curves in found.values() if curves]
    require(panels, "drift or collapse at two points")
    return _draw_panels(panels, "edits")


def plot_tradeoff(runs: RunsLike, mode: Mode = "gen") -> Figure:
    """Plot the trade-off of success against locality, one mark per run; upper right is best.

    Args:
        runs: The runs.
        mode: ``gen`` or ``tf``.

    Raises:
        DataError: If no run has both metrics.
    """
    points = series.tradeoffs(as_runs(runs), mode)
    require(points, f"reliability and locality in mode {mode!r}")
    with paper_figure(1, 1, 2.6) as (figure, (axes,)):
        for number, point in enumerate(points):
            axes.plot(
                point.locality, point.success, label=point.label, **_line_style(number, line=False)
            )
        axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), xlabel="locality", ylabel="reliability")
        _percent_axis(axes, "x")
        _percent_axis(axes, "y")
        _legend(figure, axes)
    return figure


def plot_efficiency(runs: RunsLike) -> Figure:
    """Plot the seconds per edit as stacked bars, by stage where stages were measured.

    Args:
        runs: One run or several.

    Raises:
        DataError: If no run has timings.
    """
    timed = []
    for run in as_runs(runs):
        total = series.seconds_per_edit(run)
        if stages := series.stage_seconds(run) or ({} if total is None else {"edit": total}):
            timed.append((run.label, stages))
    require(timed, "times")
    parts = list(dict.fromkeys(stage for _, found in timed for stage in found))
    with paper_figure(1, 1, 0.7 + 0.22 * len(timed)) as (figure, (axes,)):
        begin = [0.0] * len(timed)
        for number, stage in enumerate(parts):
            widths = [found.get(stage, 0.0) for _, found in timed]
            colour = COLOURS[number % len(COLOURS)]
            axes.barh([name for name, _ in timed], widths, 0.6, begin, label=stage, color=colour)
            begin = [a + b for a, b in zip(begin, widths, strict=True)]
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds an edit")
        _legend(figure, axes)
    return figure


def _draw_panels(panels: Sequence[tuple[MetricInfo, Sequence[Curve]]], x_label: str) -> Figure:
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with paper_figure(columns, rows, 1.9) as (figure, grid):
        for axes, (info, curves) in zip(grid, panels, strict=False):
            for number, line in enumerate(curves):
                axes.plot(line.x, line.y, label=line.label, **_line_style(number))
            axes.set(xlabel=x_label, ylabel=fill(info.title, 24))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if info.share:
                axes.set_ylim(-0.02, 1.04)
                _percent_axis(axes, "y")
            elif info.log and series.needs_log_axis([y for line in curves for y in line.y]):
                axes.set_yscale("log")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        if max(len(curves) for _, curves in panels) > 1:
            _legend(figure, grid[0])
    return figure


def _line_style(number: int, line: bool = True) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": "-" if line else "none",
    }


def _percent_axis(axes: Axes, which: str) -> None:
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
