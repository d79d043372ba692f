"""PRUNE: Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv 2405.16821.

Axis names: ``d_out``/``d_in`` -- an edited matrix is (d_out, d_in).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.wrappers.base import UpdateShaper
from lightning_edit.edits.correction import RESTRAINT, correction_of, with_correction
from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.edits.running_sums import RunningSums
from lightning_edit.functional.shaping import Reduction, restrain
from lightning_edit.models.weights import weight

#: Entry of a delta's ``info`` with the spectral norms of the unedited weights.
_NORMS = "unedited_spectral_norms"
#: Prefix of the names of unedited spectral norms in checkpoints.
_NORM_PREFIX = "largest/"


class PRUNE(UpdateShaper):
    r"""Singular value shrinkage of the total update of each matrix, to bound its condition number.

    After every commit the model has :math:`W_0 + f(\sum_i \Delta_i)`: the unedited weights and the
    sum of the host's own updates in force, whose singular values above the largest one of
    :math:`W_0` are shrunk, so the edited matrix stays as well conditioned as it was. Below that,
    usually for hundreds of edits, the host's updates pass through unchanged and low-rank.

    Args:
        editor: The host; ``None``: MEMIT.
        reduction: ``log`` or ``linear``, see :func:`~lightning_edit.functional.shaping.restrain`.
        base: Base of the logarithm; e, 2, 1.5 and 1.2 in the authors' code. Smaller shrinks less.
        iterative: The variant of the paper's appendix: the next update is added to the restrained
            total, so shrunk singular values are shrunk again at every commit.

    Note:
        The paper's tables restrain once, at the end of a sequence, and so does the authors' code
        (weights are saved unrestrained and restrained at evaluation). Here the model always is what
        it would be if the sequence ended now, with one difference: the host searches and solves on
        the restrained model, as on a model in use, and not on the unrestrained one. The total is
        *replaced*; the copy of PRUNE in AlphaEdit's repository adds the shrunk total to weights
        that hold it already. After an undo the other edits stay as they were written; the next
        commit restrains the sum of those in force.

        A small model's matrices have small singular values, so that few edits are restrained there:
        of 20 facts that a batch of MEMIT writes 18 of into a GPT-2 of 6 blocks, PRUNE with its
        defaults writes 6. A smaller ``base`` shrinks less.
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
        self.totals = RunningSums(_addends)
        self._unedited_norms: dict[str, float] = {}

    def on_bind(self) -> None:
        """Bind the host, and reset the total updates."""
        super().on_bind()
        self.totals, self._unedited_norms = RunningSums(_addends), {}

    # ------------------------------------------------------------------------------------ history

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Keep the totals of the edits in force, and the norms that they were measured against."""
        super().on_history(in_force, change)
        self.totals.follow(in_force, change)
        # On an edited model the unedited weight is known only up to rounding; the first delta that
        # changes it has its norm.
        known = () if change.kind in ("removed", "restored") else in_force
        for delta in change.deltas if change.kind == "appended" else known:
            for name, norm in delta.info.get(_NORMS, {}).items():
                self._unedited_norms.setdefault(name, float(norm))

    def get_extra_state(self) -> dict[str, Tensor]:
        """Save the total updates and unedited spectral norms; no names exist before an edit."""
        largest = self._unedited_norms.items()
        numbers = {_NORM_PREFIX + name: torch.tensor(n, dtype=torch.float64) for name, n in largest}
        return self.totals.state() | numbers

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the total updates and unedited spectral norms from a checkpoint."""
        largest = {name for name in state if name.startswith(_NORM_PREFIX)}
        self._unedited_norms = {
            name.removeprefix(_NORM_PREFIX): float(state[name]) for name in largest
        }
        self.totals.restore({name: state[name] for name in state if name not in largest})

    # ------------------------------------------------------------------------------------ shaping

    def transform(self, name: str, update: WeightUpdate) -> WeightUpdate:
        """Return the update from the current weight to the one with the restrained new total.

        Args:
            name: The parameter, which holds its unedited value plus all updates so far.
            update: The host's update of it.
        """
        value = update.dense()
        if value.ndim != 2:
            return update
        added = self.totals.get(name)
        added = torch.zeros_like(value) if added is None else added.to(value.device)
        largest = self._unedited_norm(name, added)
        correction = self.totals.get(RESTRAINT + name)
        if correction is not None:
            added = added - correction.to(value.device)
        change = self._correction(added + value, largest)
        if correction is not None:
            change = _truncated_svd(change.dense() - correction.to(value.device), 1e-7 * largest)
        if change.rank == 0:
            return update
        if isinstance(update, Dense):
            return Dense((value + change.dense()).float())
        return LowRank(
            torch.cat([update.left.double(), change.left], dim=1).float(),
            torch.cat([update.right.double(), change.right]).float(),
        )

    def _shape_delta(self, delta: Delta) -> Delta:
        """Transform a delta; record unedited norms, and in its history the correction."""
        shaped = super()._shape_delta(delta)
        if not self.iterative:
            shaped = with_correction(shaped, delta)
        norms = {n: self._unedited_norms[n] for n in delta.weights if n in self._unedited_norms}
        return replace(shaped, info={**shaped.info, _NORMS: norms})

    def _correction(self, total: Float[Tensor, "d_out d_in"], largest: float) -> LowRank:
        """Return the low-rank correction that shrinks a total's large singular values (SVD)."""
        # No singular value exceeds the Frobenius norm: most edits need no SVD.
        if float(total.norm()) <= largest:
            return LowRank(total[:, :0], total[:0])
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        shrunk = restrain(S, largest, self.reduction, self.base)
        cut = int((shrunk < S).sum())
        return LowRank(U[:, :cut] * (shrunk - S)[:cut], Vh[:cut])

    def _unedited_norm(self, name: str, added: Tensor) -> float:
        if name not in self._unedited_norms:
            original = weight(self.language_model, name).read().to(added.device) - added
            norm = float(torch.linalg.matrix_norm(original, ord=2))
            # LAPACK's last bits may depend on where in memory a matrix lies, and the norm is kept.
            self._unedited_norms[name] = float(f"{norm:.9g}")
        return self._unedited_norms[name]


def _truncated_svd(value: Float[Tensor, "d_out d_in"], smallest: float) -> LowRank:
    """Return the truncated SVD factors of a matrix: singular values above ``smallest``."""
    U, S, Vh = torch.linalg.svd(value, full_matrices=False)
    rank = int((smallest < S).sum())
    return LowRank(U[:, :rank] * S[:rank], Vh[:rank])


def _addends(delta: Delta) -> dict[str, Tensor]:
    """Return a delta's addends to the totals: each matrix update, and the correction in it."""
    dense = {name: update.dense() for name, update in delta.weights.items()}
    found = {name: value for name, value in dense.items() if value.ndim == 2}
    for name in list(found):
        if (restraint := correction_of(delta, name)) is not None:
            found[RESTRAINT + name] = restraint
    return found
