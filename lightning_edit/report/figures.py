"""Matplotlib figures for papers, drawn from the same series as the HTML page.

Each function takes one or several run folders and returns a figure without a title (papers use a
caption) at the width of a column. Nothing here imports torch. Matplotlib's global state is not
changed: style and fonts travel with the figure.

Example::

    from lightning_edit import report

    report.plot_aspects(["runs/rome", "runs/memit"]).savefig("aspects.pdf")
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ModuleNotFoundError as error:
    from lightning_edit.exceptions import ReportError

    raise ReportError(
        'figures need Matplotlib; install with: pip install "lightning-edit[plot]"'
    ) from error

from lightning_edit.exceptions import DataError
from lightning_edit.report import series
from lightning_edit.report.names import MetricInfo, describe_metric, leading_metrics
from lightning_edit.report.ripple import RippleGraph, lay_out, read_ripples
from lightning_edit.report.runs import RunsLike, as_runs
from lightning_edit.report.series import Curve
from lightning_edit.types import Mode

COLUMN_WIDTH = 3.4
"""Width in inches of one column of a two-column paper."""
#: Paul Tol's "bright" scheme, as on the page.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
_MARKERS = "os^Dv*P"
_BEFORE = "#BBBBBB"
_SATURATION = 5.0  # nats per token; the same colour scale as on the page
_STYLE: Any = {  # Matplotlib's stubs type each key as a literal
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
        with rc_context(_STYLE):
            super().savefig(fname, **kwargs)


@contextmanager
def _figure(columns: int, rows: int, height: float) -> Iterator[tuple[PaperFigure, list[Axes]]]:
    with rc_context(_STYLE):
        size = (COLUMN_WIDTH * columns, height * rows)
        figure = PaperFigure(figsize=size, layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


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
    _require(named, f"aspects in mode {mode!r}")
    aspects = list(dict.fromkeys(value.aspect for _, values in named for value in values))
    groups = [(name, {v.aspect: v.after for v in values}) for name, values in named]
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(groups))]
    if len(named) == 1:
        before = {v.aspect: v.before for v in named[0][1] if v.before is not None}
        groups = [("before", before), ("after", groups[0][1])]
        colours = [_BEFORE, _COLOURS[0]]
    height = 0.4 + len(aspects) * (0.12 + 0.14 * len(groups))
    with _figure(1, 1, height) as (figure, (axes,)):
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
    _require(panels, f"curves over the {over} in mode {mode!r}")
    return _draw_panels(panels, kinds[over])


def plot_drift(runs: RunsLike, names: Sequence[str] = ()) -> Figure:
    """Plot model drift and collapse over a sequence of edits.

    Args:
        runs: One run or several.
        names: Full names of the metrics to draw; default: the leading metrics of ``drift`` and
            ``collapse`` that were measured.

    Raises:
        DataError: If no run was measured at two points.
    """
    listed = as_runs(runs)
    wanted = names or leading_metrics(series.metric_names(listed, "drift", "collapse"))
    found = [(name, series.sequence_curves(listed, name, pristine=True)) for name in wanted]
    panels = [(describe_metric(name), curves) for name, curves in found if curves]
    _require(panels, "drift or collapse at two points")
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
    _require(points, f"reliability and locality in mode {mode!r}")
    with _figure(1, 1, 2.6) as (figure, (axes,)):
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
    _require(timed, "times")
    parts = list(dict.fromkeys(stage for _, found in timed for stage in found))
    with _figure(1, 1, 0.7 + 0.22 * len(timed)) as (figure, (axes,)):
        begin = [0.0] * len(timed)
        for number, stage in enumerate(parts):
            widths = [found.get(stage, 0.0) for _, found in timed]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.barh([name for name, _ in timed], widths, 0.6, begin, label=stage, color=colour)
            begin = [a + b for a, b in zip(begin, widths, strict=True)]
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds an edit")
        _legend(figure, axes)
    return figure


def plot_ripple(run: RunsLike, edit_id: str | None = None) -> Figure:
    """Plot the ripple effects of an edit; each ring is one step further in the knowledge graph.

    Args:
        run: One run.
        edit_id: Id of the edit; default: the one whose facts changed most.

    Raises:
        DataError: If the run measured no ripple effects, or none around this edit.
    """
    (one,) = as_runs(run)
    found = read_ripples(one.folder)
    _require(found, "ripples")
    chosen = edit_id or max(found, key=lambda e: max(abs(fact.change) for fact in found[e]))
    if chosen not in found:
        raise DataError(f"no ripples around edit {chosen!r}; there are: {', '.join(found)}")
    return _draw_ripple(lay_out(found[chosen]))


def _draw_ripple(graph: RippleGraph) -> Figure:
    colours = LinearSegmentedColormap.from_list("change", ["#2F6DB5", "#B9B9B9", "#D1600F"])
    scale = Normalize(-_SATURATION, _SATURATION, clip=True)
    with _figure(1, 1, COLUMN_WIDTH) as (figure, (axes,)):
        for _, radius in graph.rings:
            axes.add_patch(Circle((0, 0), radius, fill=False, ec="#DDDDDD", lw=0.5, zorder=0))
        for begin, end in graph.links:
            pair = graph.nodes[begin], graph.nodes[end]
            axes.plot([n.x for n in pair], [n.y for n in pair], color="#999999", lw=0.4, zorder=1)
        changes = [0.0 if node.fact is None else node.fact.change for node in graph.nodes]
        axes.scatter(
            [node.x for node in graph.nodes],
            [node.y for node in graph.nodes],
            s=[40 if node.fact is None else 18 for node in graph.nodes],
            c=colours(scale(changes)),
            edgecolors="#555555",
            linewidths=0.4,
            zorder=2,
        )
        axes.set_aspect("equal")
        axes.axis("off")
        bar = figure.colorbar(
            ScalarMappable(scale, colours), ax=axes, shrink=0.6, location="bottom"
        )
        bar.set_label("change of the right answer, nats a token")
    return figure


def _draw_panels(panels: Sequence[tuple[MetricInfo, Sequence[Curve]]], x_label: str) -> Figure:
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(columns, rows, 1.9) as (figure, grid):
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
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": "-" if line else "none",
    }


def _percent_axis(axes: Axes, which: str) -> None:
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))


def _require(found: object, what: str) -> None:
    if not found:
        raise DataError(f"the runs have no {what}; see `metrics` in their results.json")
