"""What a sequential editor remembers of its edits: sums over the keys of those in force.

Axis names: ``f`` -- width of a key; ``d`` -- the layer's output.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.delta import Delta


class KeyHistory(nn.Module):
    """Σ KKᵀ of every layer over the edits in force, and Σ RKᵀ where residuals are kept too.

    The sums are float64 buffers, so checkpoints hold them, and their size does not grow with the
    number of edits. They are built from the ``history`` of the deltas that are in force, which the
    ledger holds anyway: after an edit is forgotten the sums are added up again from the others, in
    their order, and have the bits they would have had without it.

    Args:
        shapes: (d, f) of the edited weight, by layer.
        residuals: Whether Σ RKᵀ is kept.
        device: Where the sums are.
    """

    def __init__(
        self, shapes: Mapping[int, tuple[int, ...]], residuals: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.layers = list(shapes)
        self._kept: list[Delta] = []
        self._stale = False
        for layer, (d, f) in shapes.items():
            self._zeros(f"keys_{layer}", (f, f), device)
            if residuals:
                self._zeros(f"residuals_{layer}", (d, f), device)
        # After an undo of many edits the sums are added up once, when somebody looks.
        self.register_state_dict_pre_hook(lambda *_: self._settle())  # type: ignore[no-untyped-call]

    @property
    def in_force(self) -> list[Delta]:
        """The deltas that the sums are made of, in the order of their commits."""
        return list(self._kept)

    def keys(self, layer: int) -> Float[Tensor, "f f"] | None:
        """Return Σ KKᵀ of a layer; ``None`` while no edit is in force."""
        return self._sum(f"keys_{layer}")

    def residuals(self, layer: int) -> Float[Tensor, "d f"] | None:
        """Return Σ RKᵀ of a layer; ``None`` while no edit is in force."""
        return self._sum(f"residuals_{layer}")

    def add(self, delta: Delta) -> None:
        """Take an edit in."""
        self._settle()
        self._kept.append(delta)
        self._accumulate(delta)

    def note(self, delta: Delta) -> None:
        """Note that an edit is in force which the sums contain already."""
        self._kept.append(delta)

    def remove(self, delta: Delta) -> bool:
        """Take an edit out; one that is not in the history (an earlier binding's) changes nothing.

        Returns:
            Whether it was in.
        """
        left = [kept for kept in self._kept if kept is not delta]
        found = len(left) < len(self._kept)
        self._kept, self._stale = left, self._stale or found
        return found

    def _zeros(self, name: str, shape: tuple[int, int], device: torch.device) -> None:
        self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))

    def _sum(self, name: str) -> Tensor | None:
        self._settle()
        return self.get_buffer(name) if self._kept else None

    def _settle(self) -> None:
        if self._stale:
            self._stale = False
            for buffer in self.buffers():
                buffer.zero_()
            for delta in self._kept:
                self._accumulate(delta)

    @torch.no_grad()
    def _accumulate(self, delta: Delta) -> None:
        for layer in self.layers:
            total = self.get_buffer(f"keys_{layer}")
            keys = delta.history[f"keys/{layer}"].to(total)
            total += keys.mT @ keys
            if f"residuals/{layer}" in delta.history:
                residuals = delta.history[f"residuals/{layer}"].to(total)
                self.get_buffer(f"residuals_{layer}").add_(residuals.mT @ keys)
