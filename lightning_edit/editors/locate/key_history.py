"""What a sequential editor remembers of its edits: sums over the keys of those in force.

Axis names: ``f`` -- width of a key; ``d`` -- the layer's output; ``n`` -- keys of an edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.running_sums import RunningSums
from lightning_edit.functional.solve import Preserved

#: After so many updates a factor is made anew: a resumed run repeats that many at most.
_UPDATES = 32

#: More keys at once than this share of their width are not worth an update
#: (`benchmarks/speed/sequential_cost.py`: 0.04 s anew, 0.016 s updated for 100 keys of width 1024).
_SHARE = 0.1


@dataclass(frozen=True)
class _Factored:
    """The factor of a layer's system.

    Args:
        edits: How many of the edits in force it contains.
        anew: After how many of them it was last made anew.
        preserved: The factor.
    """

    edits: int
    anew: int
    preserved: Preserved


class KeyHistory(nn.Module):
    """Σ KKᵀ of every layer over the edits in force, and Σ RKᵀ where residuals are kept too.

    The sums are in float64, stand in checkpoints, and their size does not grow with the number of
    edits. They are built from the ``history`` of the deltas that are in force, which the ledger
    holds anyway: after an edit is forgotten the sums are added up again from the others, in their
    order, and have the bits they would have had without it.

    The factor of a system that contains them is updated by the new keys instead of made anew. When
    it is made anew depends only on the edits in force, so a resumed run has the same bits.

    Args:
        layers: The edited layers.
        residuals: Whether Σ RKᵀ is kept.
        device: Where the sums are.
    """

    def __init__(self, layers: Sequence[int], residuals: bool, device: torch.device) -> None:
        super().__init__()
        self.layers = list(layers)
        self.with_residuals = residuals
        self.device = device
        self.totals = RunningSums(self._addends)
        self._factors: dict[int, _Factored] = {}

    @property
    def in_force(self) -> list[Delta]:
        """The deltas that the sums are made of, in the order of their commits."""
        return self.totals.in_force

    def keys(self, layer: int) -> Float[Tensor, "f f"] | None:
        """Return Σ KKᵀ of a layer; ``None`` while no edit is in force."""
        return self.totals.get(f"keys/{layer}")

    def residuals(self, layer: int) -> Float[Tensor, "d f"] | None:
        """Return Σ RKᵀ of a layer; ``None`` while no edit is in force."""
        return self.totals.get(f"residuals/{layer}")

    def add(self, delta: Delta) -> None:
        """Take an edit in."""
        self.totals.add(delta)

    def note(self, delta: Delta) -> None:
        """Note that an edit is in force which the sums contain already."""
        self.totals.note(delta)

    def remove(self, delta: Delta) -> None:
        """Take an edit out; one that is not in the history changes nothing."""
        if self.totals.remove(delta):
            self._factors.clear()

    def get_extra_state(self) -> dict[str, Tensor]:
        """Keep the sums in checkpoints."""
        return self.totals.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the sums of a checkpoint."""
        self.totals.restore({name: value.to(self.device) for name, value in state.items()})
        self._factors.clear()

    def factored(
        self, layer: int, of: Callable[[Float[Tensor, "f f"] | None], Preserved]
    ) -> Preserved:
        """Return a layer's system with the keys of all edits in force, factored.

        Args:
            layer: The layer.
            of: Factors the system for a sum of keys, the same one for every call of a layer.
        """
        edits = self.in_force
        known = self._factors.get(layer)
        seen, anew = (0, 0) if known is None else (known.edits, known.anew)
        for number, delta in enumerate(edits[seen:], start=seen + 1):
            count, width = self._keys(layer, delta).shape
            if count > _SHARE * width or number - anew >= _UPDATES:
                anew = number
        if known is None or known.edits < anew:
            whole = anew == len(edits)
            sums = self.totals.state() if whole else self.totals.summed(edits[:anew])
            known = _Factored(anew, anew, of(sums.get(f"keys/{layer}")))
        preserved = known.preserved
        for delta in edits[known.edits :]:
            if len(keys := self._keys(layer, delta)):
                preserved = preserved.with_keys(keys.mT)
        self._factors[layer] = _Factored(len(edits), anew, preserved)
        return preserved

    def _keys(self, layer: int, delta: Delta) -> Float[Tensor, "n f"]:
        # An edit that wrote nothing has no keys.
        keys = delta.history.get(f"keys/{layer}", torch.empty(0, 1))
        return keys.to(self.device, torch.float64)

    @torch.no_grad()
    def _addends(self, delta: Delta) -> dict[str, Tensor]:
        added: dict[str, Tensor] = {}
        for layer in self.layers:
            # An edit that wrote nothing adds nothing.
            if f"keys/{layer}" in delta.history:
                keys = self._keys(layer, delta)
                added[f"keys/{layer}"] = keys.mT @ keys
                if self.with_residuals:
                    residuals = delta.history[f"residuals/{layer}"].to(keys)
                    added[f"residuals/{layer}"] = residuals.mT @ keys
        return added
