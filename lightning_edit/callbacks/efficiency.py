"""Efficiency callback: time by stage, peak memory, delta size and energy at LoRA ranks of edits."""

import sys
from typing import Any, ClassVar

import torch

from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.callbacks.query_cost import add_cost
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.edits.ledger import Ledger
from lightning_edit.functional.spectrum import (
    energy_of_rank,
    squared_singular_values,
    squared_singular_values_of_product,
)
from lightning_edit.metrics import EditCost, RuntimeCost
from lightning_edit.metrics.aspects import to_floats


class EfficiencyCallback(MeasurementCallback):
    """Cost of edits: wall time on this machine, memory, parameters, delta size and rank.

    * ``efficiency/seconds`` per edit, and its stages ``…/search_seconds``, ``…/keys_seconds``,
      ``…/solve_seconds``, ``…/other_seconds``, ``…/commit_seconds``; also ``…/evaluate_seconds``
      and ``…/measure_seconds``, per edit as well;
    * ``efficiency/peak_cuda_bytes`` on a GPU, else ``efficiency/peak_rss_bytes``: peak memory of
      the whole process;
    * ``efficiency/parameters``: number of parameters that edits in force change;
      ``efficiency/delta_bytes`` per edit; ``efficiency/rank`` of a delta;
    * ``efficiency/energy@rank<r>``: share of the squared norm of all edits together that an export
      as a LoRA adapter of rank ``r`` keeps.

    For editors that act when the model is asked also ``…/state_bytes`` and ``…/text_bytes`` per
    edit in force, ``…/seconds_per_query`` beside ``…/seconds_per_query_unedited``,
    ``…/query_slowdown``, and ``…/added_tokens`` per query.

    In other training only memory is measured. Definitions: ``docs/metrics.md``.

    Args:
        export_ranks: Ranks whose energy is measured, by eigenvalues of a matrix with as many rows
            as a weight: this takes seconds per layer for the largest models.
        queries: With an editor that acts when the model is asked, number of prompts of the newest
            edits that are asked with and without the edits at each evaluation; 0: none.
        options: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.
    """

    cumulative: ClassVar[bool] = True

    def __init__(
        self, export_ranks: tuple[int, ...] = (8,), queries: int = 8, **options: Any
    ) -> None:
        super().__init__(**options)
        self.export_ranks = tuple(export_ranks)
        self.queries = queries
        self.require(queries=(queries >= 0, "0 or more"))
        self._cost = EditCost(sync_on_compute=False)
        self._runtime = RuntimeCost(sync_on_compute=False)
        self._seconds: dict[str, float] = {}
        self._counted: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: the costs so far."""
        states = {name: getattr(self._cost, name).clone() for name in self._cost.metric_state}
        asked = {name: getattr(self._runtime, name).clone() for name in self._runtime.metric_state}
        own = {"cost": states, "counted": self._counted, "runtime": asked}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and tensors.
        """
        super().load_state_dict(state_dict)
        for name, value in state_dict["cost"].items():
            setattr(self._cost, name, value)
        self._counted = dict(state_dict["counted"])
        for name, value in state_dict.get("runtime", {}).items():  # not in earlier versions
            setattr(self._runtime, name, value)

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self._cost.reset()
        self._runtime.reset()
        self._seconds, self._counted = {}, {}

    def on_commit(self, commit: Commit) -> None:
        """Add the cost of a commit.

        Args:
            commit: The commit.
        """
        ledger = commit.session.ledger
        # The session's timers: time spent on measuring is read at the next measurement.
        self._seconds = commit.session.seconds
        self._cost.update(
            len(commit.context.requests),
            commit.seconds,
            delta_bytes(commit.delta),
            sum(touched.pristine.numel() for touched in ledger.touched.values()),
            max(commit.delta.rank().values(), default=0),
        )

    def measure(self, context: EvalContext) -> Measurement:
        """Compute the cost of the edits so far.

        Args:
            context: The model.
        """
        values: dict[str, float] = {}
        if self._cost.update_count:
            stages = ("evaluate", "measure")
            now = {stage: self._seconds.get(stage, 0.0) for stage in stages}
            spent = {stage: now[stage] - self._counted.get(stage, 0.0) for stage in stages}
            self._counted = now
            self._cost.update(0, spent)
            values = to_floats(self._cost.compute())
            values.pop("peak_bytes", None)
        if not context.single_edit:
            self._runtime.reset()  # the edits in force now; else the mean over all edits
        add_cost(self._runtime, context, self.queries)
        if self._runtime.update_count:
            values |= to_floats(self._runtime.compute())
        values |= peak_memory(context.model.device)
        if context.ledger is not None and self.export_ranks:
            values |= energy_at_ranks(context.ledger, self.export_ranks)
        return Measurement({f"efficiency/{name}": value for name, value in values.items()})


def delta_bytes(delta: Delta) -> int:
    """Return the size in bytes of a delta's tensors, without the editor's history.

    Args:
        delta: The delta.
    """
    parts = [part for update in delta.weights.values() for part in update.tensors().values()]
    return sum(part.numel() * part.element_size() for part in [*parts, *delta.state.values()])


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory so far, as ``peak_cuda_bytes`` or ``peak_rss_bytes``.

    Args:
        device: Device of the model.
    """
    if device.type == "cuda":
        return {"peak_cuda_bytes": float(torch.cuda.max_memory_allocated(device))}
    if sys.platform == "win32":
        return {}  # the standard library reports no peak memory there
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def energy_at_ranks(ledger: Ledger, ranks: tuple[int, ...]) -> dict[str, float]:
    """Compute the energy (share of squared norm) that low-rank adapters keep of all edits in force.

    Args:
        ledger: Ledger with the edits.
        ranks: Adapter ranks.

    Returns:
        By metric name, the share of the squared norm over all edited matrices; empty if no matrix
        is edited.
    """
    kept = dict.fromkeys(ranks, 0.0)
    whole = 0.0
    for name, touched in ledger.touched.items():
        if touched.total.ndim != 2:
            continue
        squared = _squared_spectrum(ledger, name)
        norm = float(squared.sum())
        whole += norm
        for rank in ranks:
            kept[rank] += energy_of_rank(squared, rank) * norm
    if whole == 0:
        return {}
    return {f"energy@rank{rank}": share / whole for rank, share in kept.items()}


def _squared_spectrum(ledger: Ledger, name: str) -> torch.Tensor:
    """Return squared singular values of a weight's total update, from its factors if cheaper."""
    total = ledger.touched[name].total
    updates = [delta.weights[name] for delta in ledger.deltas if name in delta.weights]
    factors = [update for update in updates if isinstance(update, LowRank)]
    if len(factors) < len(updates) or sum(u.rank for u in factors) >= min(total.shape):
        return squared_singular_values(total)
    left = torch.cat([update.left for update in factors], dim=1)
    right = torch.cat([update.right for update in factors])
    return squared_singular_values_of_product(left, right)
