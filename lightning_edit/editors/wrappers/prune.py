"""PRUNE: Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv 2405.16821.

Axis names: ``d_out``/``d_in`` -- an edited matrix is (d_out, d_in).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.edits.correction import RESTRAINT, correction_of, with_correction
from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.edits.running_sums import RunningSums
from lightning_edit.functional.shaping import Reduction, restrain
from lightning_edit.models.weights import weight

#: What names of the largest singular values of unedited matrices begin with in checkpoints.
_LARGEST = "largest/"


class PRUNE(UpdateShaper):
    r"""Restrain the singular values of everything that edits have added to a matrix.

    After every commit the model has :math:`W_0 + f(\sum_i \Delta_i)`: the unedited weights and the
    sum of the host's own updates in force, of which singular values above the largest one of
    :math:`W_0` are shrunk, so the edited matrix stays as well conditioned as it was. Until then,
    usually for hundreds of edits, the host's updates pass through unchanged and low-rank.

    Args:
        editor: The host; ``None``: MEMIT.
        reduction: ``log`` or ``linear``, see :func:`~lightning_edit.functional.shaping.restrain`.
        base: Base of the logarithm; e, 2, 1.5 and 1.2 in the authors' code. Smaller shrinks less.
        iterative: The variant of the paper's appendix: the next update is added to the restrained
            total, so what was shrunk once is shrunk again at every commit.

    Note:
        The paper's tables restrain once, at the end of a sequence, and so does the authors' code
        (weights are saved host_update and treated when they are evaluated). Here the model always
        is what it would be if the sequence ended now, with one difference: the host searches and
        solves on the restrained model, as on a model that is in use, and not on the host_update
        one. The total is *replaced*; the copy of PRUNE in AlphaEdit's repository adds the shrunk
        total to weights that hold it already. After an undo the other edits stay as they were
        written; the next commit restrains the sum of those that are in force.
    """

    def __init__(
        self,
        editor: Editor | None = None,
        reduction: Reduction = "log",
        base: float = math.e,
        iterative: bool = False,
    ) -> None:
        super().__init__(editor)
        if base <= 1:
            raise ValueError(f"the logarithm needs a base above 1, got {base}")
        self.reduction: Reduction = reduction
        self.base = base
        self.iterative = iterative
        self.totals = RunningSums(_added)
        self._largest: dict[str, float] = {}

    def on_bind(self) -> None:
        """Bind the host; nothing has been added to this model yet."""
        super().on_bind()
        self.totals, self._largest = RunningSums(_added), {}

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
        largest = self._largest.items()
        numbers = {_LARGEST + name: torch.tensor(n, dtype=torch.float64) for name, n in largest}
        return self.totals.state() | numbers

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take the totals of a checkpoint."""
        largest = {name for name in state if name.startswith(_LARGEST)}
        self._largest = {name.removeprefix(_LARGEST): float(state[name]) for name in largest}
        self.totals.restore({name: state[name] for name in state if name not in largest})

    # ------------------------------------------------------------------------------------ shaping

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Return what leads from the weight as it is to the one with the restrained new total.

        Args:
            name: The parameter, which holds its unedited value plus what was added so far.
            update: The host's update of it.
        """
        value = update.dense()
        if value.ndim != 2:
            return update
        added = self.totals.get(name)
        added = torch.zeros_like(value) if added is None else added.to(value.device)
        largest = self._largest_unedited(name, added)
        shrunk_by = self.totals.get(RESTRAINT + name)
        if shrunk_by is not None:
            added = added - shrunk_by.to(value.device)
        change = self._restraint(added + value, largest)
        if shrunk_by is not None:
            change = _factored(change.dense() - shrunk_by.to(value.device), 1e-7 * largest)
        if change.rank == 0:
            return update
        if isinstance(update, Dense):
            return Dense((value + change.dense()).float())
        return LowRank(
            torch.cat([update.left.double(), change.left], dim=1).float(),
            torch.cat([update.right.double(), change.right]).float(),
        )

    def _shaped(self, delta: Delta) -> Delta:
        """Shape a delta, and note how much of it is not the host's."""
        shaped = super()._shaped(delta)
        if self.iterative:
            return shaped
        return with_correction(shaped, delta)

    def _restraint(self, total: Float[Tensor, "d_out d_in"], largest: float) -> LowRank:
        """Return what restrains a total when it is added to it."""
        # No singular value is above the Frobenius norm: most edits need no decomposition.
        if float(total.norm()) <= largest:
            return LowRank(total[:, :0], total[:0])
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        shrunk = restrain(S, largest, self.reduction, self.base)
        cut = int((shrunk < S).sum())
        return LowRank(U[:, :cut] * (shrunk - S)[:cut], Vh[:cut])

    def _largest_unedited(self, name: str, added: Tensor) -> float:
        if name not in self._largest:
            original = weight(self.language_model, name).read().to(added.device) - added
            self._largest[name] = float(torch.linalg.matrix_norm(original, ord=2))
        return self._largest[name]


def _factored(value: Float[Tensor, "d_out d_in"], smallest: float) -> LowRank:
    """Return the factors of a matrix without what is smaller than rounding."""
    U, S, Vh = torch.linalg.svd(value, full_matrices=False)
    rank = int((smallest < S).sum())
    return LowRank(U[:, :rank] * S[:rank], Vh[:rank])


def _added(delta: Delta) -> dict[str, Tensor]:
    """Return what a delta adds to each matrix, and how much of that is not the host's."""
    dense = {name: update.dense() for name, update in delta.weights.items()}
    found = {name: value for name, value in dense.items() if value.ndim == 2}
    for name in list(found):
        if (restraint := correction_of(delta, name)) is not None:
            found[RESTRAINT + name] = restraint
    return found
