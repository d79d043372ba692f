"""Rows of ``cases.jsonl`` into the evaluation points of ``results.json``."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_edit.metrics import summarise
from lightning_edit.records import ProbeScore

_COUNTS = ("n", "probes")


def point(after: int, scores: Iterable[ProbeScore]) -> dict[str, Any]:
    """Make one evaluation point.

    Args:
        after: Edits in force.
        scores: Outcomes of whole requests, compared with the pristine model or not.

    Returns:
        ``after``; ``metrics``; ``before``, the same metrics of the same probes on the pristine
        model; ``counts``, requests and probes behind each group.
    """
    listed = list(scores)
    values = summarise(listed)
    before = summarise([score.pristine for score in listed if score.pristine is not None])
    return {
        "after": after,
        "metrics": {name: value for name, value in values.items() if not _is_count(name)},
        "before": {name: value for name, value in before.items() if not _is_count(name)},
        "counts": {name: int(value) for name, value in values.items() if _is_count(name)},
    }


def points_of(
    cases: Iterable[Mapping[str, Any]], baseline: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Make every evaluation point of a run.

    Args:
        cases: Rows of ``cases.jsonl``, each with ``after``.
        baseline: Rows of ``baseline.jsonl``; they become the point after 0 edits.

    Returns:
        Points in the order of edits.
    """
    by_point: dict[int, list[ProbeScore]] = {}
    for row in cases:
        by_point.setdefault(row["after"], []).append(ProbeScore.from_row(row))
    pristine = [ProbeScore.from_row(row) for row in baseline]
    if pristine:
        by_point.setdefault(0, []).extend(pristine)
    return [point(after, by_point[after]) for after in sorted(by_point)]


def _is_count(name: str) -> bool:
    return name.rpartition("/")[2] in _COUNTS
