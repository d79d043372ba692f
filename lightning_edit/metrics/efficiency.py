"""Editing cost metric: time, delta size, memory. Definitions: ``docs/metrics.md``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

STAGES: tuple[str, ...] = ("search", "keys", "solve", "other", "commit", "evaluate", "measure")
"""Stages of a run that are timed."""
#: Stages that are no part of an edit.
_MEASURING = ("evaluate", "measure")


class EditCost(Metric):
    """Cost per edit: seconds by stage, delta size, changed parameters, rank, peak memory.

    ``compute`` returns ``seconds`` (of finding and writing an edit, without measuring), each
    stage's ``<stage>_seconds``, ``delta_bytes``, all as means over edits; ``parameters``, the
    largest number of parameters that the edits so far change, ``rank``, the highest rank of a
    delta, and ``peak_bytes``. States are sums and maxima: with edits on several processes, time is
    summed over processes, as compute time is.

    Example:
        >>> metric = EditCost()
        >>> metric.update(2, {"search": 3.0, "commit": 1.0}, delta_bytes=800, parameters=50, rank=1)
        >>> values = metric.compute()
        >>> values["seconds"].item(), values["search_seconds"].item(), values["delta_bytes"].item()
        (2.0, 1.5, 400.0)
    """

    full_state_update = False
    is_differentiable = False
    seconds: Tensor
    edits: Tensor
    stored: Tensor
    touched: Tensor
    rank: Tensor
    peak: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(len(STAGES), dtype=torch.float64)
        self.add_state("seconds", zeros, dist_reduce_fx="sum")
        for name in ("edits", "stored"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("touched", "rank", "peak"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="max")

    def update(
        self,
        edits: int,
        seconds: Mapping[str, float],
        delta_bytes: int = 0,
        parameters: int = 0,
        rank: int = 0,
        peak_bytes: int = 0,
    ) -> None:
        """Add the cost of one commit, or time spent on measuring.

        Args:
            edits: Number of edits in the commit; 0 for measuring.
            seconds: By stage, see :data:`STAGES`; a stage of another name counts as ``other``.
            delta_bytes: Size of their delta in bytes.
            parameters: Number of parameters that all edits so far change.
            rank: Highest rank of the delta's updates.
            peak_bytes: Peak memory so far.
        """
        for stage, value in seconds.items():
            self.seconds[STAGES.index(stage if stage in STAGES else "other")] += value
        self.edits += edits
        self.stored += delta_bytes
        most = [("touched", parameters), ("rank", rank), ("peak", peak_bytes)]
        for name, number in most:
            setattr(self, name, getattr(self, name).clamp_min(number))

    def compute(self) -> dict[str, Tensor]:
        """Compute the costs by name; empty if there was no edit."""
        if self.edits == 0:
            return {}
        each = self.seconds / self.edits
        stages = {
            f"{stage}_seconds": each[place]
            for place, stage in enumerate(STAGES)
            if self.seconds[place] > 0
        }
        spent = [place for place, stage in enumerate(STAGES) if stage not in _MEASURING]
        return stages | {
            "seconds": each[spent].sum(),
            "delta_bytes": self.stored.double() / self.edits,
            "parameters": self.touched,
            "rank": self.rank,
            "peak_bytes": self.peak,
        }
