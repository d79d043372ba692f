"""Sections and charts of the page, chosen by the metrics that the runs contain."""

from collections.abc import Sequence

from lightning_edit.evaluation.attributed import FactAttribution
from lightning_edit.report import charts, series
from lightning_edit.report.attribution_section import attribution_section
from lightning_edit.report.names import MetricInfo, describe_metric, leading_metrics
from lightning_edit.report.parts import (
    Chart,
    ScalarMetric,
    Section,
    last_values,
    percent_or_dash,
    run_labels,
    scalar_metrics,
)
from lightning_edit.report.ripple import RippleFact
from lightning_edit.report.ripple_section import ripple_section
from lightning_edit.report.runs import Run
from lightning_edit.report.sequence import metric_curves
from lightning_edit.report.series import AspectValue
from lightning_edit.report.small_charts import small_multiples
from lightning_edit.types import Mode

_NOTE = {"gen": "", "tf": "Each answer token is predicted given the right tokens before it."}
MODE = {
    "gen": "Answers the model writes by itself",
    "tf": "Teacher forced",
}


def sections(
    runs: Sequence[Run],
    ripples: Sequence[dict[str, list[RippleFact]]],
    attributions: Sequence[Sequence[FactAttribution]] = (),
) -> list[Section]:
    """Build every section of the page that the runs have metrics for.

    Args:
        runs: The runs.
        ripples: For each run, the facts around its edits, see
            :func:`~lightning_edit.report.ripple.read_ripples`.
        attributions: For each run, why facts moved, see
            :func:`~lightning_edit.report.attribution_section.read_attributions`.
    """
    found = [
        _aspect_section(runs),
        _tradeoff_section(runs),
        _curve_section(runs),
        ripple_section(runs, ripples),
        attribution_section(runs, attributions or [()] * len(runs)),
        _family_section(
            runs,
            "drift",
            "Drift and collapse",
            "What becomes of the rest of the model as edits pile up: it may forget earlier edits, "
            "move away from its old self, or stop writing sense.",
            "drift",
            "collapse",
        ),
        _family_section(
            runs,
            "leaks",
            "Where the new answer leaks",
            "Questions near the edited one in which the new answer is wrong: an edit that is "
            "learned too well gives it there as well.",
            "overfitting",
            opened=False,
        ),
        _efficiency_section(runs),
    ]
    return [section for section in found if section is not None]


def _aspect_row(run: str, value: AspectValue) -> tuple[str, ...]:
    shares = (percent_or_dash(value.before), percent_or_dash(value.after))
    return (run, value.aspect, value.measure, *shares, str(value.n))


def _aspect_section(runs: Sequence[Run]) -> Section | None:
    drawn = []
    for mode in series.modes(runs):
        named = [(run.label, series.aspects(run, mode)) for run in runs]
        named = [(name, values) for name, values in named if values]
        rows = [_aspect_row(name, value) for name, values in named for value in values]
        header = ("run", "aspect", "measure", "before", "after", "requests")
        plot = charts.aspect_bars(named, run_labels(runs))
        drawn.append(Chart(f"aspects-{mode}", MODE[mode], _NOTE[mode], plot, header, tuple(rows)))
    if not drawn:
        return None
    return Section(
        "aspects",
        "What was measured",
        "Each bar is a share of questions, averaged within an edit first and over edits then. "
        "Locality counts questions answered as before the edit; the other aspects count right "
        "answers. Teacher-forced values are upper bounds.",
        tuple(drawn),
    )


def _tradeoff_section(runs: Sequence[Run]) -> Section | None:
    if len(runs) < 2:
        return None
    drawn = []
    for mode in series.modes(runs):
        points = series.tradeoffs(runs, mode)
        if len(points) > 1:
            rows = tuple(
                (p.label, percent_or_dash(p.success), percent_or_dash(p.locality), str(p.n))
                for p in points
            )
            header = ("run", "reliability", "locality", "requests")
            plot = charts.tradeoff(points, run_labels(runs))
            drawn.append(Chart(f"tradeoff-{mode}", MODE[mode], _NOTE[mode], plot, header, rows))
    if not drawn:
        return None
    return Section(
        "tradeoff",
        "Success against side effects",
        "Up: more edits hold. Right: less else changed. The upper right corner is where a method "
        "should be.",
        tuple(drawn),
    )


def _curve_section(runs: Sequence[Run]) -> Section | None:
    cards = []
    kinds = [
        ("sequence", "edits written, one after the other"),
        ("batch", "edits written at once"),
    ]
    mode: Mode = next(iter(series.modes(runs)), "gen")
    for kind, label in kinds:
        found = [
            (MetricInfo(aspect.capitalize(), share=True), curves)
            for aspect in series.ASPECTS
            if (curves := series.leading_curves(runs, aspect, mode, kind))
        ]
        card = small_multiples(kind, f"Aspects over {label}", found, label, run_labels(runs))
        cards += [] if card is None else [card]
    if not cards:
        return None
    return Section(
        "curves",
        "Over the number of edits",
        f"All edits written so far are evaluated again at each point. {MODE[mode]}.",
        multiples=tuple(cards),
    )


def _family_section(
    runs: Sequence[Run], name: str, title: str, intro: str, *families: str, opened: bool = True
) -> Section | None:
    found = metric_curves(runs, leading_metrics(series.metric_names(runs, *families)))
    drawn = [(info, curves) for info, curves in found.values() if curves]
    card = small_multiples(name, title, drawn, "edits written", run_labels(runs))
    left = [full for full, (_, curves) in found.items() if not curves]
    numbers = [number for full in left for number in scalar_metrics(runs, full)]
    if card is None and not numbers:
        return None
    cards = () if card is None else (card,)
    return Section(name, title, intro, (), tuple(numbers), multiples=cards, open=opened)


def _efficiency_section(runs: Sequence[Run]) -> Section | None:
    drawn: list[Chart] = []
    numbers: list[ScalarMetric] = []
    staged = [(run.label, stages) for run in runs if (stages := series.stage_seconds(run))]
    if len(staged) == 1 == len(runs):  # one bar says no more than its numbers
        ((label, stages),) = staged
        for part, value in stages.items():
            info = describe_metric(f"efficiency/{part}_seconds")
            numbers.append(ScalarMetric(info.title, info.note, ((label, info.show(value)),)))
    elif staged:
        parts = tuple((run, part, f"{s:.4g}") for run, found in staged for part, s in found.items())
        title, note = "Where the time of an edit goes", "Seconds an edit, without scoring it."
        plot = charts.stacked(staged, "seconds")
        names = ("run", "stage", "seconds")
        drawn.append(Chart("efficiency-stages", title, note, plot, names, parts))
    for number, (info, values) in enumerate(_costs(runs, bool(staged))):
        # A bar chart of one number, of a counter, or of equal numbers shows nothing.
        if info.counter or len({info.show(value) for _, value in values}) < 2:
            shown = tuple((name, info.show(value)) for name, value in values)
            numbers.append(ScalarMetric(info.title, info.note, shown))
            continue
        rows = tuple((name, info.show(value)) for name, value in values)
        labelled = [(name, value, info.show(value)) for name, value in values]
        plot = charts.bars(labelled, info.unit or "value", run_labels(runs))
        header = ("run", info.unit or "value")
        drawn.append(Chart(f"efficiency-{number}", info.title, info.note, plot, header, rows))
    if not drawn and not numbers:
        return None
    seconds = series.seconds_per_edit(runs[0]) if len(runs) == 1 else None
    return Section(
        "efficiency",
        "What it costs",
        "Times are of the machine that a run was made on; compare runs of one machine.",
        tuple(drawn),
        tuple(numbers),
        gist="" if seconds is None else f"{seconds:.3g} s an edit",
        open=bool(drawn),
    )


def _costs(runs: Sequence[Run], staged: bool) -> list[tuple[MetricInfo, list[tuple[str, float]]]]:
    """Return the cost metrics to draw: total time, and memory and size where measured."""
    times = [(run.label, t) for run in runs if (t := series.seconds_per_edit(run)) is not None]
    found = [] if staged or not times else [(describe_metric("efficiency/seconds"), times)]
    for full in series.metric_names(runs, "efficiency"):
        if not full.endswith("seconds"):
            info = describe_metric(full)
            found += [(info, last_values(runs, full))] if info.leading else []
    return found
