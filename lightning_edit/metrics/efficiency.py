"""Cost of edits, and of asking a model with them. Definitions: ``docs/metrics.md``."""

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


class RuntimeCost(Metric):
    """Cost of edits that act when the model is asked: memory an edit, time and tokens a query.

    ``compute`` returns ``state_bytes`` and ``text_bytes`` per edit in force; ``seconds_per_query``
    with the edits and ``seconds_per_query_unedited`` without, ``query_slowdown``, their ratio; and
    ``added_tokens`` per query, where the editor says them. What was not measured is absent. All
    states are sums.

    Example:
        >>> metric = RuntimeCost()
        >>> metric.update(edits=2, state_bytes=800, text_bytes=30)
        >>> metric.update(queries=4, seconds=2.0, unedited_seconds=1.0, added_tokens=60)
        >>> {name: value.item() for name, value in metric.compute().items()}["added_tokens"]
        15.0
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor
    seconds: Tensor

    #: Whole numbers that are summed.
    _COUNTS = ("edits", "state_bytes", "text_bytes", "queries", "told", "added_tokens")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        counts = torch.zeros(len(self._COUNTS), dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        self.add_state("seconds", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        edits: int = 0,
        state_bytes: int = 0,
        text_bytes: int = 0,
        queries: int = 0,
        seconds: float = 0.0,
        unedited_seconds: float = 0.0,
        added_tokens: int | None = None,
    ) -> None:
        """Add edits in force, or queries.

        Args:
            edits: Number of edits in force.
            state_bytes: Bytes of their module state.
            text_bytes: Bytes of their texts.
            queries: Number of queries.
            seconds: Wall time of the queries with the edits.
            unedited_seconds: Wall time of the same queries without.
            added_tokens: Tokens that the editor has added to them; ``None``: not known.
        """
        told, added = (0, 0) if added_tokens is None else (queries, added_tokens)
        new = torch.tensor([edits, state_bytes, text_bytes, queries, told, added])
        self.counts += new.to(self.counts.device)
        self.seconds += torch.tensor([seconds, unedited_seconds], dtype=torch.float64).to(
            self.seconds.device
        )

    def compute(self) -> dict[str, Tensor]:
        """Compute the costs by name; empty if there was no edit."""
        sums = dict(zip(self._COUNTS, self.counts.double(), strict=True))
        values: dict[str, Tensor] = {}
        if sums["edits"] > 0:
            values |= {name: sums[name] / sums["edits"] for name in ("state_bytes", "text_bytes")}
        if sums["queries"] > 0:
            edited, unedited = self.seconds / sums["queries"]
            values |= {"seconds_per_query": edited, "seconds_per_query_unedited": unedited}
            if unedited > 0:
                values["query_slowdown"] = edited / unedited
        if sums["told"] > 0:
            values["added_tokens"] = sums["added_tokens"] / sums["told"]
        return values
