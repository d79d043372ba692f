"""Data series of the charts, extracted from ``results.json``: aspects, curves, trade-offs.

The HTML page and the paper figures draw the same series. Nothing here imports torch or a plotting
library.
"""

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from lightning_edit.report.runs import Run
from lightning_edit.types import Mode

ASPECTS = (
    "reliability",
    "generalization",
    "locality",
    "portability",
    "understanding",
    "known",
)
"""Aspects to draw, in this order."""
#: The measures that may lead an aspect, by mode; the first that was measured does.
_LEADING: Mapping[Mode, tuple[str, ...]] = {"gen": ("judge", "answer", "em"), "tf": ("em",)}
MODES: tuple[Mode, ...] = ("gen", "tf")


@dataclass(frozen=True)
class AspectValue:
    """The leading measure of one aspect at a run's last evaluation.

    Args:
        aspect: Name of the aspect.
        measure: Name of the measure, without mode.
        before: Value on the pristine model; ``None`` where it is not defined, as for ``kept``.
        after: Value on the edited model, a share.
        n: Number of requests behind the value.
        interval: Ends of its 95 % interval, if one was computed.
    """

    aspect: str
    measure: str
    before: float | None
    after: float
    n: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """One metric over the number of edits: within a run, or across runs of one editor.

    Args:
        label: Label of the run or editor.
        x: Numbers of edits in force, ascending.
        y: Value of the metric after each number of edits.
        intervals: Ends of the 95 % interval of each value; empty if none were computed.
        n: Number of measurements behind each value; empty if it is not told.
    """

    label: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()
    n: tuple[int, ...] = ()

    def begun_with(self, start: float) -> "Curve":
        """Return the curve with a first value before any edit, unless it has one."""
        if self.x[0] == 0:
            return self
        return Curve(self.label, (0, *self.x), (start, *self.y))


@dataclass(frozen=True)
class Tradeoff:
    """Trade-off of one run: reliability against locality, both as shares.

    Args:
        label: Label of the run.
        success: ``reliability`` of the last evaluation.
        locality: ``locality`` of the last evaluation.
        n: Number of requests behind the values.
    """

    label: str
    success: float
    locality: float
    n: int


def leading_measures(aspect: str, mode: Mode) -> tuple[str, ...]:
    """Return the measures that may lead an aspect; the first one that was measured does.

    What decides whether a generated answer is right is the verdict of a judge, if one was asked,
    else the answer-first rule; runs of earlier versions only have ``em``.

    Args:
        aspect: Name of the aspect.
        mode: ``tf`` or ``gen``.
    """
    return ("kept",) if aspect == "locality" else _LEADING[mode]


def leading_metric(aspect: str, mode: Mode, names: Container[str]) -> str | None:
    """Return the full name of an aspect's leading metric; ``None`` if none was measured.

    Args:
        aspect: Name of the aspect.
        mode: ``tf`` or ``gen``.
        names: Names of the metrics that were measured.
    """
    asked = (f"{aspect}/{measure}@{mode}" for measure in leading_measures(aspect, mode))
    return next((name for name in asked if name in names), None)


def leading_curves(runs: Sequence[Run], aspect: str, mode: Mode, over: str) -> list[Curve]:
    """Return the curves of an aspect's leading metric, each run by the rule it was scored with.

    Args:
        runs: The runs.
        aspect: Name of the aspect.
        mode: ``tf`` or ``gen``.
        over: ``sequence`` or ``batch``, see :func:`sequence_curves` and :func:`batch_curves`.
    """
    take = {"sequence": sequence_curves, "batch": batch_curves}[over]
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        last = run.last
        name = None if last is None else leading_metric(aspect, mode, last["metrics"])
        if name is not None:
            by_name.setdefault(name, []).append(run)
    return [curve for name, some in by_name.items() for curve in take(some, name)]


def modes(runs: Sequence[Run]) -> list[Mode]:
    """Return the scoring modes of the runs: generation first, then teacher forcing."""
    return [mode for mode in MODES if any(aspects(run, mode) for run in runs)]


def aspects(run: Run, mode: Mode) -> list[AspectValue]:
    """Return the leading measure of every aspect in a run's last evaluation.

    Args:
        run: The run.
        mode: ``tf`` or ``gen``.
    """
    point = run.last
    if point is None:
        return []
    found = []
    for aspect in ASPECTS:
        name = leading_metric(aspect, mode, point["metrics"])
        if name is not None:
            found.append(
                AspectValue(
                    aspect,
                    name.rpartition("/")[2].partition("@")[0],
                    None if name not in point["before"] else float(point["before"][name]),
                    float(point["metrics"][name]),
                    int(point["counts"].get(f"{name}/n", point["counts"].get(f"{aspect}/n", 0))),
                )
            )
    return found


def curve(run: Run, name: str, pristine: bool = False) -> Curve | None:
    """Return the curve of one metric over a run; ``None`` with fewer than two evaluations.

    Args:
        run: The run.
        name: Full name of the metric.
        pristine: Whether the curve starts with the value before the first edit.
    """
    measured = [
        (int(point["after"]), float(point["metrics"][name]))
        for point in run.results["points"]
        if name in point["metrics"] and (pristine or point["after"] > 0)
    ]
    if sum(after > 0 for after, _ in measured) < 2:
        return None
    return Curve(run.label, tuple(x for x, _ in measured), tuple(y for _, y in measured))


def sequence_curves(runs: Sequence[Run], name: str, pristine: bool = False) -> list[Curve]:
    """Return a metric's curve over the edit sequence of every run with several evaluations.

    Args:
        runs: The runs.
        name: Full name of the metric.
        pristine: Whether each curve starts with the value before the first edit.
    """
    found = (curve(run, name, pristine) for run in runs)
    return [line for line in found if line is not None]


def batch_curves(runs: Sequence[Run], name: str) -> list[Curve]:
    """Return a metric's curves over the batch size, one curve per editor.

    Args:
        runs: Only runs of protocol ``batch`` count; an editor needs two runs of different sizes.
        name: Full name of the metric.
    """
    sizes: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.results["protocol"] == "batch" and run.last and name in run.last["metrics"]:
            found = sizes.setdefault(run.editor, {})
            found[int(run.last["after"])] = float(run.last["metrics"][name])
    return [
        Curve(editor, tuple(sorted(found)), tuple(found[size] for size in sorted(found)))
        for editor, found in sizes.items()
        if len(found) > 1
    ]


def metric_names(runs: Sequence[Run], *families: str) -> list[str]:
    """Return the metric names that belong to one of the families, in order of appearance.

    Args:
        runs: Runs to search.
        *families: Prefixes of metric names before the first ``/`` or ``.``, such as ``drift``.
    """
    found = (
        name
        for run in runs
        for point in run.points
        for name in point["metrics"]
        if re.split("[./]", name)[0] in families
    )
    return list(dict.fromkeys(found))


def last_value(run: Run, name: str) -> float | None:
    """Return a metric's value at the last evaluation that has it."""
    for point in reversed(run.points):
        if name in point["metrics"]:
            return float(point["metrics"][name])
    return None


def tradeoffs(runs: Sequence[Run], mode: Mode) -> list[Tradeoff]:
    """Return the trade-off of reliability and locality for every run that has both."""
    found = []
    for run in runs:
        values = {value.aspect: value for value in aspects(run, mode)}
        if {"reliability", "locality"} <= set(values):
            success = values["reliability"]
            found.append(Tradeoff(run.label, success.after, values["locality"].after, success.n))
    return found


def seconds_per_edit(run: Run) -> float | None:
    """Return the mean seconds per edit without evaluation; ``None`` if not measured."""
    timing = run.results["timing"]
    if not timing.get("edits") or "edit_seconds" not in timing:
        return None
    return float(timing["edit_seconds"]) / int(timing["edits"])


def stage_seconds(run: Run) -> dict[str, float]:
    """Return the seconds per edit by stage, without scoring; empty if not measured."""
    found = {}
    for name in metric_names([run], "efficiency"):
        stage = name.removeprefix("efficiency/").removesuffix("_seconds")
        if name.endswith("_seconds") and stage not in ("evaluate", "measure"):
            found[stage] = last_value(run, name) or 0.0
    return found


def percent(share: float, digits: int = 1) -> str:
    """Format a share as a percentage that never rounds to exactly 0 % or 100 %.

    Args:
        share: A share between 0 and 1.
        digits: Digits after the decimal point.

    Example:
        >>> percent(0.9999), percent(1.0), percent(0.004, digits=0)
        ('99.9%', '100.0%', '1%')
    """
    least = 10.0**-digits
    shown = 100 * share if share in (0, 1) else min(max(100 * share, least), 100 - least)
    return f"{shown:.{digits}f}%"


def needs_log_axis(values: Sequence[float]) -> bool:
    """Return whether all values are positive and span over two decades: use a log axis."""
    positive = [value for value in values if value > 0]
    return len(positive) == len(values) and math.log10(max(values) / min(values)) > 2
