"""What edits cost: time by stage, memory, size."""

import sys
from typing import Any, ClassVar

import torch

from lightning_edit.callbacks.base import Commit, EvalContext, Measurement, MeasurementCallback
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.edits.ledger import Ledger
from lightning_edit.functional.spectrum import (
    energy_of_rank,
    squared_singular_values,
    squared_singular_values_of_product,
)
from lightning_edit.metrics import EditCost
from lightning_edit.metrics.aspects import plain


class EfficiencyCallback(MeasurementCallback):
    """Measures what edits cost; the times are those of the machine that runs.

    * ``efficiency/seconds`` an edit, and its stages ``…/search_seconds``, ``…/keys_seconds``,
      ``…/solve_seconds``, ``…/other_seconds``, ``…/commit_seconds``; ``…/evaluate_seconds`` and
      ``…/measure_seconds`` stand beside them, an edit as well;
    * ``efficiency/peak_cuda_bytes`` on a GPU, else ``efficiency/peak_rss_bytes``, the most memory
      of the whole process;
    * ``efficiency/parameters``: numbers of the model that edits in force change;
      ``efficiency/delta_bytes`` an edit; ``efficiency/rank`` of a delta;
    * ``efficiency/energy@rank<r>``: share of the squared norm of all edits together that an export
      as an adapter of rank ``r`` keeps.

    In other trainings only memory is measured. Definitions: ``docs/metrics.md``.

    Args:
        export_ranks: Ranks whose energy is measured, by eigenvalues of a matrix with as many rows
            as a weight: seconds a layer for the largest models.
        options: As for :class:`~lightning_edit.callbacks.base.MeasurementCallback`.
    """

    cumulative: ClassVar[bool] = True

    def __init__(self, export_ranks: tuple[int, ...] = (8,), **options: Any) -> None:
        super().__init__(**options)
        self.export_ranks = tuple(export_ranks)
        self._cost = EditCost(sync_on_compute=False)
        self._seconds: dict[str, float] = {}
        self._counted: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the costs so far."""
        states = {name: getattr(self._cost, name).clone() for name in self._cost.metric_state}
        return super().state_dict() | {"cost": states, "counted": self._counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers and tensors.
        """
        super().load_state_dict(state_dict)
        for name, value in state_dict["cost"].items():
            setattr(self._cost, name, value)
        self._counted = dict(state_dict["counted"])

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._cost.reset()
        self._seconds, self._counted = {}, {}

    def on_commit(self, commit: Commit) -> None:
        """Add the cost of a commit.

        Args:
            commit: What was written.
        """
        ledger = commit.session.ledger
        # The session's clock: what it has spent on measuring is read when it measures next.
        self._seconds = commit.session.seconds
        self._cost.update(
            len(commit.context.requests),
            commit.seconds,
            delta_bytes(commit.delta),
            sum(touched.pristine.numel() for touched in ledger.touched.values()),
            max(commit.delta.rank().values(), default=0),
        )

    def measure(self, context: EvalContext) -> Measurement:
        """Return the costs of the edits so far.

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
            values = plain(self._cost.compute())
            values.pop("peak_bytes", None)
        values |= peak_memory(context.model.device)
        if context.ledger is not None and self.export_ranks:
            values |= energies(context.ledger, self.export_ranks)
        return Measurement({f"efficiency/{name}": value for name, value in values.items()})


def delta_bytes(delta: Delta) -> int:
    """Return the bytes of the tensors that a delta stores, without the editor's history.

    Args:
        delta: The delta.
    """
    parts = [part for update in delta.weights.values() for part in update.tensors().values()]
    return sum(part.numel() * part.element_size() for part in [*parts, *delta.state.values()])


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory so far, by a name that tells which memory.

    Args:
        device: Where the model is.
    """
    if device.type == "cuda":
        return {"peak_cuda_bytes": float(torch.cuda.max_memory_allocated(device))}
    if sys.platform == "win32":
        return {}  # Python has no such count there
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def energies(ledger: Ledger, ranks: tuple[int, ...]) -> dict[str, float]:
    """Return what adapters of some ranks keep of all edits in force.

    Args:
        ledger: The edits.
        ranks: Ranks of an adapter.

    Returns:
        By name, the share of the squared norm over all edited matrices; nothing where there is no
        edited matrix.
    """
    kept = dict.fromkeys(ranks, 0.0)
    whole = 0.0
    for name, touched in ledger.touched.items():
        if touched.total.ndim != 2:
            continue
        squared = _spectrum(ledger, name)
        norm = float(squared.sum())
        whole += norm
        for rank in ranks:
            kept[rank] += energy_of_rank(squared, rank) * norm
    if whole == 0:
        return {}
    return {f"energy@rank{rank}": share / whole for rank, share in kept.items()}


def _spectrum(ledger: Ledger, name: str) -> torch.Tensor:
    """Return squared singular values of all updates of a weight, from their factors if smaller."""
    total = ledger.touched[name].total
    updates = [delta.weights[name] for delta in ledger.deltas if name in delta.weights]
    factors = [update for update in updates if isinstance(update, LowRank)]
    if len(factors) < len(updates) or sum(u.rank for u in factors) >= min(total.shape):
        return squared_singular_values(total)
    left = torch.cat([update.left for update in factors], dim=1)
    right = torch.cat([update.right for update in factors])
    return squared_singular_values_of_product(left, right)
