"""Ripple-effect metrics: changes of facts around an edit, and GIE.

GIE is reconstructed, see :mod:`lightning_edit.evaluation.neighbourhoods`.

Axis names: ``g`` -- groups (sets, then distances, then similarities); ``m`` -- sums.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_edit.evaluation.neighbourhoods import SETS, Ripple
from lightning_edit.functional.measures import mean
from lightning_edit.functional.ripple import percentile

_DISTANCES = (*map(str, range(1, 7)), "7_up", "none")
#: Lower edges of the similarity bins.
_SIMILARITIES = tuple(round(-1 + 0.2 * number, 1) for number in range(10))
_GROUPS = (
    *(f"ripple.{name}" for name in SETS),
    *(f"ripple.distance_{name}" for name in _DISTANCES),
    *(f"ripple.similarity_{low:.1f}" for low in _SIMILARITIES),
)
_SUMS = ("change", "beyond", "rank_change", "right_before", "right_after", "facts")


class RippleScores(Metric):
    """Ripple effects: changes of facts around edits by set, graph distance and similarity.

    ``compute`` returns, for each group that has facts, ``<group>/change@tf`` (mean rise of the log
    perplexity, nats), ``beyond@tf`` (share whose rise is above the threshold), ``rank_change@tf``,
    ``em_before@tf`` and ``em@tf`` (shares of correct objects) and ``facts``; for the sets also
    ``p95@tf``; and ``ripple/gie@tf``: the mean over edits of the mean change of ``near`` minus that
    of ``random``.

    States are sums, and the list of changes of each set for the percentile: a histogram percentile
    would jump by one bin when rounding moves a change across an edge.

    Args:
        threshold: Rise in nats above which a fact counts as harmed; log 2 halves its probability.
        **kwargs: See :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    gie: Tensor

    def __init__(self, threshold: float = math.log(2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        sums = torch.zeros(len(_GROUPS), len(_SUMS), dtype=torch.float64)
        self.add_state("sums", sums, dist_reduce_fx="sum")
        for name in SETS:
            self.add_state(_state_of(name), [], dist_reduce_fx="cat")
        # Sum over edits, and number of edits with facts in both sets.
        self.add_state("gie", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ripples: Sequence[Ripple]) -> None:
        """Add the facts around whole edits.

        Args:
            ripples: All facts around these edits; a rank without edits passes an empty list.
        """
        for name in SETS:
            changes_of = [ripple.change for ripple in ripples if ripple.place.set == name]
            # Also when empty: processes cannot gather a list without any tensor.
            getattr(self, _state_of(name)).append(
                torch.tensor(changes_of, dtype=torch.float64, device=self.sums.device)
            )
        if not ripples:
            return
        values = torch.tensor([self._values(ripple) for ripple in ripples], dtype=torch.float64)
        groups = torch.tensor([_groups_of(ripple) for ripple in ripples])
        for column in groups.T:
            self.sums.index_add_(0, column.to(self.sums.device), values.to(self.sums.device))
        changes: dict[str, dict[str, list[float]]] = {}
        for ripple in ripples:
            of_edit = changes.setdefault(ripple.edit_id, {})
            of_edit.setdefault(ripple.place.set, []).append(ripple.change)
        for found in changes.values():
            if "near" in found and "random" in found:
                self.gie[0] += mean(found["near"]) - mean(found["random"])
                self.gie[1] += 1

    def _values(self, ripple: Ripple) -> list[float]:
        before, after = ripple.before, ripple.after
        values = (
            ripple.change,
            ripple.change > self.threshold,
            after.rank - before.rank,
            before.right,
            after.right,
            1,
        )
        return [float(value) for value in values]

    def compute(self) -> dict[str, Tensor]:
        """Compute means over facts by name, and GIE, where there are facts."""
        result = {}
        for row, group in enumerate(_GROUPS):
            values = dict(zip(_SUMS, self.sums[row], strict=True))
            count = values.pop("facts")
            if count == 0:
                continue
            renamed = {"right_before": "em_before", "right_after": "em"}
            for name, total in values.items():
                result[f"{group}/{renamed.get(name, name)}@tf"] = total / count
            if row < len(SETS):
                changes = dim_zero_cat(getattr(self, _state_of(SETS[row])))
                result[f"{group}/p95@tf"] = percentile(changes, 0.95)
            result[f"{group}/facts"] = count
        if self.gie[1] > 0:
            result["ripple/gie@tf"] = self.gie[0] / self.gie[1]
        return result


def _state_of(name: str) -> str:
    """Return the metric-state name of a set's changes."""
    return f"changes_{name}"


def _groups_of(ripple: Ripple) -> list[int]:
    """Return the indices of a fact's groups: set, distance, similarity."""
    distance = ripple.place.distance
    step = "none" if distance is None else str(distance) if distance < 7 else "7_up"
    # Rounded, so that a similarity just below 0 by rounding error stays in the bin from 0.
    place = min(max(int(round((ripple.place.similarity + 1) * 5, 6)), 0), 9)
    return [
        SETS.index(ripple.place.set),
        len(SETS) + _DISTANCES.index(step),
        len(SETS) + len(_DISTANCES) + place,
    ]
