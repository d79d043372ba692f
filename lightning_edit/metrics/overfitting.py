"""Editing-overfit metrics (EVOKE): leakage of the edited answer. See ``docs/metrics.md``.

Axis names: ``g`` -- groups of questions; ``m`` -- measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.functional.measures import mean

GROUPS: tuple[str, ...] = (
    "subject_specificity",
    "subject_only",
    "prefix_distraction",
    "multi_hop",
    "negation",
)
"""Groups of probes to which the edited answer is wrong."""

MEASURES: tuple[str, ...] = (
    "dp@tf",
    "cap@tf",
    "oap@tf",
    "eos@tf",
    "ams@tf",
    "leak@tf",
    "leak@gen",
)
"""Measures of a probe, see :class:`Leak`."""


@dataclass(frozen=True)
class Leak:
    """Answer probabilities on one overfitting probe, to which the edited answer is wrong.

    A probability is e to minus the mean negative log-probability of an answer's tokens. A value is
    ``None`` if the probe has no such answer or the mode was not run.

    Args:
        edit_id: Id of the request.
        group: One of :data:`GROUPS`.
        target: Probability of the edited answer (EVOKE's DP).
        right: Probability of the correct answer (CAP).
        old: Probability of the answer before the edit (OAP).
        forced: Whether all tokens of the edited answer are the argmax.
        generated: Whether the edited answer occurs in the generated text.
    """

    edit_id: str
    group: str
    target: float | None = None
    right: float | None = None
    old: float | None = None
    forced: bool | None = None
    generated: bool | None = None

    def measures(self) -> dict[str, float]:
        """Return the EVOKE measures (DP, CAP, OAP, EOS, AMS) and leaks that this probe has.

        EOS counts a probe as sound if the correct answer is more probable than the edited one, AMS
        if the correct or the edited answer is more probable than the old one.
        """
        values = {
            "dp@tf": self.target,
            "cap@tf": self.right,
            "oap@tf": self.old,
            "leak@tf": None if self.forced is None else float(self.forced),
            "leak@gen": None if self.generated is None else float(self.generated),
        }
        if self.right is not None and self.target is not None:
            values["eos@tf"] = float(self.right > self.target)
            if self.old is not None:
                values["ams@tf"] = float(max(self.right, self.target) > self.old)
        return {name: value for name, value in values.items() if value is not None}


class Overfitting(Metric):
    """Editing overfit: means of :class:`Leak` over requests, as ``<group>/<measure>@<mode>``.

    The probes of one request are averaged first. Groups, measures and their names follow EVOKE
    (arXiv 2410.07819). The states are sums, so each process may hold any share of the requests,
    even none.

    Example:
        >>> metric = Overfitting()
        >>> metric.update([Leak("e", "subject_specificity", target=0.6, right=0.2)])
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'subject_specificity/dp@tf': 0.6, 'subject_specificity/cap@tf': 0.2, \
'subject_specificity/eos@tf': 0.0}
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shape = (len(GROUPS), len(MEASURES))
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, leaks: Sequence[Leak]) -> None:
        """Add leaks of whole requests; a rank without requests may add none.

        Args:
            leaks: Outcomes; all of one request must come in one call.
        """
        values: dict[tuple[str, str, str], list[float]] = {}
        for leak in leaks:
            for name, value in leak.measures().items():
                values.setdefault((leak.edit_id, leak.group, name), []).append(value)
        for (_, group, name), listed in values.items():
            place = GROUPS.index(group), MEASURES.index(name)
            self.sums[place] += mean(listed)
            self.counts[place] += 1

    def compute(self) -> dict[str, Tensor]:
        """Compute means over requests, by metric name; what was not measured has no key."""
        return {
            f"{group}/{name}": self.sums[row, column] / self.counts[row, column]
            for row, group in enumerate(GROUPS)
            for column, name in enumerate(MEASURES)
            if self.counts[row, column] > 0
        }
