"""Float64 totals of deltas by weight, added up in the order of their commits."""

from collections.abc import Collection, Mapping

from torch import Tensor

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import EditedWeights


class Totals:
    """Running sum of deltas, ``Σ Δ``, in float64 and in their order.

    Begun at a snapshot or at zero, it gives the same bits.

    Args:
        weights: The weights of the model, which stay as they are.
        base: What is added to: totals of a snapshot; ``None``: zero.
        names: Only these weights; ``None``: all that the deltas change.
    """

    def __init__(
        self,
        weights: EditedWeights,
        base: Mapping[str, Tensor] | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        self._weights = weights
        self._names = None if names is None else set(names)
        #: Totals of the weights that some delta has changed, by parameter name.
        self.values: dict[str, Tensor] = {}
        for name, total in (base or {}).items():
            if self._wants(name):
                # Not the snapshot's own tensor, since it is added to in place.
                self.values[name] = weights.zero_total(name).add_(total.to(weights.device(name)))

    def _wants(self, name: str) -> bool:
        return self._names is None or name in self._names

    def add(self, delta: Delta) -> None:
        """Add a delta.

        Args:
            delta: The next one.
        """
        for name, update in delta.weights.items():
            if self._wants(name):
                if name not in self.values:
                    self.values[name] = self._weights.zero_total(name)
                total = self.values[name]
                total += update.dense(device=total.device)
