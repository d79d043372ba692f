"""Series that do not move: told in one sentence instead of a chart each. Torch-free."""

from collections.abc import Sequence

from lightning_edit.report.names import MetricInfo
from lightning_edit.report.series import Curve, percent

Drawn = tuple[MetricInfo, Sequence[Curve]]
"""A metric and its curves, one a run."""


def shown(info: MetricInfo, value: float) -> str:
    """Format a value as coarsely as a small chart shows it."""
    if info.share:
        return percent(value, 0)
    return f"{value:.3g} {info.unit}".strip()


def is_flat(info: MetricInfo, curves: Sequence[Curve]) -> bool:
    """Return whether no curve moves by as much as a reader could see.

    Args:
        info: The metric.
        curves: Its curves.
    """
    return all(len({shown(info, value) for value in line.y}) == 1 for line in curves)


def divide(found: Sequence[Drawn]) -> tuple[list[Drawn], list[Drawn]]:
    """Divide metrics into those that move and those that do not.

    Args:
        found: Metrics and their curves.
    """
    moving = [one for one in found if not is_flat(*one)]
    return moving, [one for one in found if is_flat(*one)]


def flat_sentence(flat: Sequence[Drawn]) -> str:
    """Say in one sentence which metrics stayed as they were, and at which value.

    Args:
        flat: Metrics that do not move; empty: an empty sentence.

    Example:
        >>> line = Curve("ROME", (1, 10), (1.0, 1.0))
        >>> flat_sentence([(MetricInfo("Right answers", share=True), [line])])
        'Unchanged throughout: right answers (100%).'
    """
    if not flat:
        return ""
    named = [f"{_lowered(info.title)} ({_values(info, curves)})" for info, curves in flat]
    return f"Unchanged throughout: {'; '.join(named)}."


def _values(info: MetricInfo, curves: Sequence[Curve]) -> str:
    values = {line.label: shown(info, line.y[-1]) for line in curves}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{label} {value}" for label, value in values.items())


def _lowered(title: str) -> str:
    """Return a title inside a sentence; abbreviations keep their capitals."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
