"""Ripple effects as series with intervals: change over the distance, share of harmed facts."""

from collections.abc import Mapping, Sequence

from lightning_edit.functional.bootstrap import cluster_mean, wilson
from lightning_edit.report.ripple import RippleFact
from lightning_edit.report.runs import Run
from lightning_edit.report.series import AspectValue, Curve, last_value


def change_over_distance(label: str, ripples: Mapping[str, Sequence[RippleFact]]) -> Curve | None:
    """Return the mean change of facts over their distance in the knowledge graph.

    Intervals draw whole edits, since the facts around one edit change together.

    Args:
        label: Label of the run.
        ripples: Facts by edit; facts without a path are left out.

    Returns:
        ``None`` with fewer than two distances.
    """
    changes: dict[int, dict[str, list[float]]] = {}
    for edit, facts in ripples.items():
        for fact in facts:
            if fact.distance is not None:
                changes.setdefault(fact.distance, {}).setdefault(edit, []).append(fact.change)
    if len(changes) < 2:
        return None
    means = {at: cluster_mean(list(changes[at].values())) for at in sorted(changes)}
    return Curve(
        label,
        tuple(means),
        tuple(mean.value for mean in means.values()),
        tuple((mean.low, mean.high) for mean in means.values()),
        tuple(mean.n for mean in means.values()),
    )


def harmed_facts(run: Run, sets: Mapping[str, str]) -> list[AspectValue]:
    """Return the share of facts around the edits that were harmed, by set, with its interval.

    Args:
        run: The run.
        sets: Display names of the sets, by the name in ``ripple.<set>/…``.
    """
    found = []
    for name, words in sets.items():
        share = last_value(run, f"ripple.{name}/beyond@tf")
        n = int(last_value(run, f"ripple.{name}/facts") or 0)
        if share is not None:
            interval = wilson(share, n) if n else None
            found.append(AspectValue(words, "harmed", None, share, n, interval))
    return found
