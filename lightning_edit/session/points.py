"""Evaluation points of ``results.json``, aggregated from the rows of ``cases.jsonl``."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.measures import mean
from lightning_edit.metrics import summarise

_COUNTS = ("n", "probes", "tests")


def point(after: int, scores: Iterable[ProbeScore]) -> dict[str, Any]:
    """Aggregate probe outcomes into one evaluation point.

    Args:
        after: Number of edits in force.
        scores: Outcomes of whole requests, compared with the pristine model or not.

    Returns:
        ``after``; ``metrics``; ``before``, the same metrics of the same probes on the pristine
        model; ``counts``, the numbers of requests and probes in each group.
    """
    listed = list(scores)
    values = summarise(listed)
    before = summarise([score.pristine for score in listed if score.pristine is not None])
    return {
        "after": after,
        "metrics": {name: value for name, value in values.items() if not is_count(name)},
        "before": {name: value for name, value in before.items() if not is_count(name)},
        "counts": {name: int(value) for name, value in values.items() if is_count(name)},
    }


def points_of(
    cases: Iterable[Mapping[str, Any]],
    baseline: Iterable[Mapping[str, Any]] = (),
    measures: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Aggregate every evaluation point of a run.

    Args:
        cases: Rows of ``cases.jsonl``, each with ``after``.
        baseline: Rows of ``baseline.jsonl``; they become the point after 0 edits.
        measures: Rows of ``measures.jsonl``; their values are added to the metrics of their point.
            Several rows of one point (``single`` measures after every request) are averaged; if
            they are cumulative, the last one counts.

    Returns:
        Points in the order of edits.
    """
    by_point: dict[int, list[ProbeScore]] = {}
    for row in cases:
        by_point.setdefault(row["after"], []).append(ProbeScore.from_row(row))
    pristine = [ProbeScore.from_row(row) for row in baseline]
    if pristine:
        by_point.setdefault(0, []).extend(pristine)
    points = [point(after, by_point[after]) for after in sorted(by_point)]
    measured = _means(measures)
    for entry in points:
        entry["metrics"] |= measured.get(entry["after"], {})
        known = measured.get(0, {}) if entry["after"] else {}
        entry["before"] |= {
            name: value for name, value in known.items() if name in entry["metrics"]
        }
    return points


def _means(measures: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Return the mean of each measured value by point, or the last one of cumulative values."""
    collected: dict[int, dict[str, list[float]]] = {}
    for row in measures:
        of_point = collected.setdefault(row["after"], {})
        for name, value in row.get("values", {}).items():
            earlier = [] if row.get("cumulative") else of_point.get(name, [])
            of_point[name] = [*earlier, value]
    return {
        after: {name: mean(values) for name, values in named.items()}
        for after, named in collected.items()
    }


def is_count(name: str) -> bool:
    """Return whether a value is a number of requests, probes or tests, and no score."""
    return name.rpartition("/")[2] in _COUNTS
