"""Metrics over a sequence of edits, as the page and the figures draw them. Torch-free."""

from collections.abc import Sequence

from lightning_edit.exceptions import DataError
from lightning_edit.report.names import MetricInfo, describe_metric
from lightning_edit.report.runs import Run
from lightning_edit.report.series import Curve, sequence_curves


def metric_curves(
    runs: Sequence[Run], names: Sequence[str]
) -> dict[str, tuple[MetricInfo, list[Curve]]]:
    """Return metrics with their curves over the edits, from before the first edit where known.

    Args:
        runs: The runs.
        names: Full names of the metrics.

    Returns:
        By full name; without curves for counters and for metrics that were measured once.
    """
    found = {}
    for name in names:
        info = describe_metric(name)
        curves = [] if info.counter else sequence_curves(runs, name, pristine=True)
        if info.start is not None:
            curves = [line.begun_with(info.start) for line in curves]
        found[name] = (info, curves)
    return found


def choose_metrics(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the metrics that a user names: in full, by family, or by measure.

    Args:
        names: Full names of the metrics that there are.
        wanted: Full names such as ``collapse/perplexity_ratio``, families such as ``drift``, or
            measures such as ``retention``, which stand for the metric in every aspect and mode.

    Raises:
        DataError: If one of them names no metric.
    """
    chosen = []
    for one in wanted:
        found = [name for name in names if one in _called(name)]
        if not found:
            raise DataError(
                f"expected the name of a metric, its family or its measure, got {one!r}; there "
                f"are: {', '.join(names)}"
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def _called(name: str) -> set[str]:
    """Return what a metric may be called: its full name, family, group and measure."""
    group, _, rest = name.partition("/")
    return {name, group.partition(".")[0], group, rest, rest.partition("@")[0]}
