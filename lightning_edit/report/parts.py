"""Building blocks of the page: sections, charts with their data tables, scalar metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bokeh.embed import json_item

from lightning_edit.report import charts, series
from lightning_edit.report.drawing import Drawing
from lightning_edit.report.names import MetricInfo, describe_metric
from lightning_edit.report.runs import Run
from lightning_edit.report.series import Curve
from lightning_edit.report.small_charts import Multiples


@dataclass(frozen=True)
class Chart:
    """One chart with an accessible text version: title, note and data table.

    Args:
        id: Id of its HTML element.
        title: What it shows.
        note: How to read it; may be empty.
        drawing: The Bokeh figure and its legend.
        header: Column names of its data table.
        rows: Rows of its data table.
    """

    id: str
    title: str
    note: str
    drawing: Drawing
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def item(self) -> Any:
        """Return the Bokeh JSON item that BokehJS renders."""
        return json_item(self.drawing.plot)


@dataclass(frozen=True)
class ScalarMetric:
    """A metric with one value per run, shown as a number and not as a curve.

    Args:
        title: What it measures.
        note: Its definition.
        values: Pairs of run and formatted value.
    """

    title: str
    note: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A section of the page: heading, introduction, charts and scalar metrics.

    Args:
        id: Its HTML anchor.
        title: Its heading.
        intro: Its introduction, one or two sentences.
        charts: Its charts.
        numbers: Metrics with a single value per run.
        graphs: Titles of the graphs that can be selected in place of the first chart.
        items: Bokeh JSON items of these graphs.
        multiples: Cards of small charts.
        gist: What it found, in a few words, which are read while it is closed; may be empty.
        open: Whether it is open when the page is opened.
    """

    id: str
    title: str
    intro: str
    charts: tuple[Chart, ...] = ()
    numbers: tuple[ScalarMetric, ...] = ()
    graphs: tuple[str, ...] = ()
    items: tuple[Any, ...] = field(default=(), repr=False)
    multiples: tuple[Multiples, ...] = ()
    gist: str = ""
    open: bool = True


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return the labels of runs, in the order that sets their colours."""
    return [run.label for run in runs]


def percent_or_dash(value: float | None) -> str:
    """Format a share as a percentage, and ``None`` as a dash."""
    return "–" if value is None else series.percent(value)


def line_chart(
    name: str,
    info: MetricInfo,
    found: Sequence[Curve],
    x_label: str,
    order: Sequence[str] = (),
) -> Chart:
    """Build a line chart with its data table.

    Args:
        name: Id of its HTML element.
        info: Title, note and kind of axis.
        found: The lines.
        x_label: Label of the x axis.
        order: Names of all runs; their order sets the colours.
    """
    title, note, share, log = info.title, info.note, info.share, info.log
    log = log and series.needs_log_axis([y for line in found for y in line.y])

    def written(value: float) -> str:
        return percent_or_dash(value) if share else f"{value:.4g}"

    rows = []
    for line in found:
        for place, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            low_high = [" to ".join(map(written, line.intervals[place]))] if line.intervals else []
            n = [str(line.n[place])] if line.n else []
            rows.append((line.label, f"{x:g}", written(y), *low_high, *n))
    plot = charts.lines(found, x_label, share, log, order)
    spread = ("95 % interval",) if any(line.intervals for line in found) else ()
    counted = ("n",) if any(line.n for line in found) else ()
    header = ("run", x_label, "value", *spread, *counted)
    return Chart(name, title, note, plot, header, tuple(rows))


def scalar_metrics(runs: Sequence[Run], *families: str) -> tuple[ScalarMetric, ...]:
    """Return the leading scalar metrics of metric families, or one metric by its full name."""
    names = families if "/" in families[0] else series.metric_names(runs, *families)
    found = []
    for full in names:
        info = describe_metric(full)
        values = last_values(runs, full)
        if info.leading and values:
            shown = tuple((run, info.show(value)) for run, value in values)
            found.append(ScalarMetric(info.title, info.note, shown))
    return tuple(found)


def last_values(runs: Sequence[Run], name: str) -> list[tuple[str, float]]:
    """Return a metric's last value for every run that has it, with the run's label."""
    found = ((run.label, series.last_value(run, name)) for run in runs)
    return [(label, value) for label, value in found if value is not None]
