"""PRUNE: Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv 2405.16821.

Axis names: ``d_out``/``d_in`` -- an edited matrix is (d_out, d_in).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_edit.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.editors.base import Editor
from lightning_edit.editors.wrap import UpdateShaper
from lightning_edit.functional.shaping import Reduction, restrain
from lightning_edit.models.weights import weight


class PRUNE(UpdateShaper):
    """Restrain the singular values of everything that edits have added to a matrix.

    Values of the total update above the largest one of the unedited matrix are shrunk, so the
    edited matrix stays as well conditioned as it was. Until then, usually for hundreds of edits,
    the host's updates pass through unchanged and low-rank.

    Args:
        editor: The host; ``None``: MEMIT.
        reduction: ``log`` or ``linear``, see :func:`~lightning_edit.functional.shaping.restrain`.
        base: Base of the logarithm; e, 2, 1.5 and 1.2 in the authors' code. Smaller shrinks less.

    Note:
        This is the iterative variant of the paper's appendix: every commit leaves the restrained
        total in the model, and the next edit is found on that. The total is *replaced*; the copy of
        PRUNE in AlphaEdit's repository adds the shrunk total to weights that hold it already.
    """

    def __init__(
        self,
        editor: Editor | None = None,
        reduction: Reduction = "log",
        base: float = math.e,
    ) -> None:
        super().__init__(editor)
        if base <= 1:
            raise ValueError(f"the logarithm needs a base above 1, got {base}")
        self.reduction: Reduction = reduction
        self.base = base
        self._totals: dict[str, Tensor] = {}
        self._commits: dict[str, int] = {}
        self._largest: dict[str, float] = {}

    def on_bind(self) -> None:
        """Bind the host; nothing has been added to this model yet."""
        super().on_bind()
        self._totals, self._commits, self._largest = {}, {}, {}

    # ------------------------------------------------------------------------------------ history

    def remember(self, delta: Delta) -> None:
        """Count a committed delta into the totals.

        Args:
            delta: What was written.
        """
        super().remember(delta)
        for name, update in _matrices(delta).items():
            added = update.dense()
            self._totals[name] = added + self._totals[name] if name in self._totals else added
            self._commits[name] = self._commits.get(name, 0) + 1

    def forget(self, delta: Delta) -> None:
        """Take an undone delta out of the totals.

        Args:
            delta: What was taken back.
        """
        super().forget(delta)
        for name, update in _matrices(delta).items():
            self._commits[name] -= 1
            self._totals[name] = self._totals[name] - update.dense()
            if not self._commits[name]:
                # With no edit left the total is zero, and not what rounding makes of it.
                del self._totals[name], self._commits[name]

    def get_extra_state(self) -> dict[str, Any]:
        """Keep the totals in checkpoints; their names are not known before the first edit."""
        return {"totals": self._totals, "commits": self._commits}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the totals of a checkpoint."""
        self._totals, self._commits = dict(state["totals"]), dict(state["commits"])

    # ------------------------------------------------------------------------------------ shaping

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Return what leads from the total so far to the restrained new total.

        Args:
            name: The parameter, which holds its unedited value plus the total so far.
            update: The host's update of it.
        """
        value = update.dense()
        if value.ndim != 2:
            return update
        before = self._totals.get(name, torch.zeros_like(value)).to(value.device)
        largest = self._largest_unedited(name, before)
        total = before + value
        # No singular value is above the Frobenius norm: most edits need no decomposition.
        if float(total.norm()) <= largest:
            return update
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        shrunk = restrain(S, largest, self.reduction, self.base)
        cut = int((shrunk < S).sum())
        left, right = U[:, :cut] * (shrunk - S)[:cut], Vh[:cut]
        if isinstance(update, Dense):
            return Dense((value + left @ right).float())
        return LowRank(
            torch.cat([update.left.double(), left], dim=1).float(),
            torch.cat([update.right.double(), right]).float(),
        )

    def _largest_unedited(self, name: str, total: Tensor) -> float:
        if name not in self._largest:
            original = weight(self.language_model, name).read().to(total.device) - total
            self._largest[name] = float(torch.linalg.matrix_norm(original, ord=2))
        return self._largest[name]


def _matrices(delta: Delta) -> Mapping[str, WeightUpdate]:
    return {
        name: update
        for name, update in delta.weights.items()
        if isinstance(update, LowRank) or update.value.ndim == 2
    }
