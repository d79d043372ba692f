"""PRUNE: Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv 2405.16821.

Axis names: ``d_out``/``d_in`` -- an edited matrix is (d_out, d_in).
"""

import math

import torch
from torch import Tensor

from lightning_edit.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.editors.base import Editor
from lightning_edit.editors.totals import Totals
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
        self.totals = Totals(_added)
        self._largest: dict[str, float] = {}

    def on_bind(self) -> None:
        """Bind the host; nothing has been added to this model yet."""
        super().on_bind()
        self.totals, self._largest = Totals(_added), {}

    # ------------------------------------------------------------------------------------ history

    def remember(self, delta: Delta) -> None:
        """Count a committed delta into the totals."""
        super().remember(delta)
        self.totals.add(delta)

    def forget(self, delta: Delta) -> None:
        """Take an undone delta out of the totals."""
        super().forget(delta)
        self.totals.remove(delta)

    def recall(self, delta: Delta) -> None:
        """Note a delta whose part of the totals a checkpoint has restored."""
        super().recall(delta)
        self.totals.note(delta)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Keep the totals in checkpoints; their names are not known before the first edit."""
        return self.totals.state()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take the totals of a checkpoint."""
        self.totals.restore(state)

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
        added = self.totals.get(name)
        before = torch.zeros_like(value) if added is None else added.to(value.device)
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


def _added(delta: Delta) -> dict[str, Tensor]:
    """Return what a delta adds to each matrix."""
    dense = {name: update.dense() for name, update in delta.weights.items()}
    return {name: value for name, value in dense.items() if value.ndim == 2}
