"""Key history of sequential editors: its policy, Σ KKᵀ over the edits in force, and the factor.

Axis names: ``f`` -- width of a key; ``d`` -- the layer's output; ``n`` -- keys of an edit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.running_sums import RunningSums
from lightning_edit.functional.solve import Preserved

#: Most low-rank updates of a factor before it is recomputed; a resumed run repeats at most these.
_MAX_UPDATES = 32

#: Largest number of new keys, as a share of their width, for which an update is worth it
#: (`benchmarks/speed/sequential_cost.py`, 100 keys of width 1024: 0.04 s recomputed, 0.016 s
#: updated).
_MAX_UPDATE_SHARE = 0.1


@dataclass(frozen=True)
class HistoryPolicy:
    """History policy: what a method keeps of an edit, so that later edits preserve it.

    Args:
        keys: ``edited``: the keys on the edited model, read again. ``solved``: those of the solve.
        residuals: Whether the residuals are kept too (D4S).
        by_default: Whether the method keeps a history unless told otherwise.
    """

    keys: Literal["edited", "solved"] = "edited"
    residuals: bool = False
    by_default: bool = True

    def entries(
        self,
        keys: Mapping[int, Tensor],
        residuals: Mapping[int, Tensor],
        edited_keys: Callable[[], Mapping[int, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the history of a delta; called while its updates are applied.

        Args:
            keys: The solved keys of each layer, (n, f).
            residuals: The residuals of each layer, (n, d).
            edited_keys: Reads the keys of each layer on the edited model.
        """
        kept = keys if self.keys == "solved" else edited_keys()
        history = {f"keys/{layer}": value.float() for layer, value in kept.items()}
        if self.residuals:
            for layer, value in residuals.items():
                history[f"residuals/{layer}"] = value.float()
        return history


@dataclass(frozen=True)
class _CachedFactor:
    """Cached factor of a layer's system.

    Args:
        edits: Number of edits in force that the factor contains.
        rebuilt_at: Number of edits it contained when it was last recomputed.
        preserved: The factor.
    """

    edits: int
    rebuilt_at: int
    preserved: Preserved


class KeyHistory(nn.Module):
    """Key history: Σ KKᵀ per layer over the edits in force, and Σ RKᵀ if residuals are kept.

    The sums are in float64, are saved in checkpoints, and do not grow with the number of edits.
    They are built from the ``history`` of the deltas in force, which the ledger holds anyway: after
    an undo the sums are recomputed from the remaining deltas, in commit order, and are bit for bit
    what they would have been without the undone edit.

    The Cholesky factor of a system with these sums gets low-rank updates with the new keys. The
    edits at which it is recomputed depend only on the edits in force, so a resumed run has the same
    bits.

    Args:
        layers: The edited layers.
        residuals: Whether Σ RKᵀ is kept.
        device: Device of the sums.
    """

    def __init__(self, layers: Sequence[int], residuals: bool, device: torch.device) -> None:
        super().__init__()
        self.layers = list(layers)
        self.with_residuals = residuals
        self.device = device
        self.totals = RunningSums(self._addends)
        self._factors: dict[int, _CachedFactor] = {}

    @property
    def in_force(self) -> Sequence[Delta]:
        """The deltas that the sums are made of, in the order of their commits."""
        return self.totals.in_force

    def keys(self, layer: int) -> Float[Tensor, "f f"] | None:
        """Return the key sum Σ KKᵀ of a layer; ``None`` while no edit is in force."""
        return self.totals.get(f"keys/{layer}")

    def residuals(self, layer: int) -> Float[Tensor, "d f"] | None:
        """Return the residual sum Σ RKᵀ of a layer; ``None`` while no edit is in force."""
        return self.totals.get(f"residuals/{layer}")

    def follow(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the list of edits in force.

        Args:
            in_force: The list, a live view.
            change: What changed.
        """
        self.totals.follow(in_force, change)
        if change.kind != "appended":
            self._factors.clear()

    def get_extra_state(self) -> dict[str, Tensor]:
        """Save the key sums in checkpoints."""
        return self.totals.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the key sums from a checkpoint."""
        self.totals.restore({name: value.to(self.device) for name, value in state.items()})
        self._factors.clear()

    def factor_with_keys(
        self, layer: int, factor: Callable[[Float[Tensor, "f f"] | None], Preserved]
    ) -> Preserved:
        """Return a layer's Cholesky factor with the keys of all edits in force, cached.

        Args:
            layer: The layer.
            factor: Factors the system, given Σ KKᵀ; the same function for every call of a layer.
        """
        edits = self.in_force
        known = self._factors.get(layer)
        seen, rebuilt_at = (0, 0) if known is None else (known.edits, known.rebuilt_at)
        for number, delta in enumerate(edits[seen:], start=seen + 1):
            count, width = self._delta_keys(layer, delta).shape
            if count > _MAX_UPDATE_SHARE * width or number - rebuilt_at >= _MAX_UPDATES:
                rebuilt_at = number
        if known is None or known.edits < rebuilt_at:
            whole = rebuilt_at == len(edits)
            sums = self.totals.state() if whole else self.totals.summed(edits[:rebuilt_at])
            known = _CachedFactor(rebuilt_at, rebuilt_at, factor(sums.get(f"keys/{layer}")))
        preserved = known.preserved
        for delta in edits[known.edits :]:
            if len(keys := self._delta_keys(layer, delta)):
                preserved = preserved.with_keys(keys.mT)
        self._factors[layer] = _CachedFactor(len(edits), rebuilt_at, preserved)
        return preserved

    def _delta_keys(self, layer: int, delta: Delta) -> Float[Tensor, "n f"]:
        # An edit without any update has no keys.
        keys = delta.history.get(f"keys/{layer}", torch.empty(0, 1))
        return keys.to(self.device, torch.float64)

    @torch.no_grad()
    def _addends(self, delta: Delta) -> dict[str, Tensor]:
        added: dict[str, Tensor] = {}
        for layer in self.layers:
            # An edit without any update adds nothing.
            if f"keys/{layer}" in delta.history:
                keys = self._delta_keys(layer, delta)
                added[f"keys/{layer}"] = keys.mT @ keys
                if self.with_residuals:
                    residuals = delta.history[f"residuals/{layer}"].to(keys)
                    added[f"residuals/{layer}"] = residuals.mT @ keys
        return added
