"""Weights of a model under edit: pristine copies, float64 totals, and values formed from both.

The value of a weight is always ``cast(W0 + Σ Δ)``, formed from the pristine copy: nothing is added
to or subtracted from a rounded weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import LedgerError, NotFiniteError
from lightning_edit.models.weights import Weight, weight


@dataclass
class EditedWeight:
    """A weight that some delta in force changes.

    Args:
        handle: The weight as it is.
        pristine: Its values before the first edit, in its own type.
        total: What all deltas in force add, in float64.
        version: PyTorch's count of in-place writes to it after the ledger's last one.
    """

    handle: Weight
    pristine: Tensor
    total: Tensor
    version: int | None = None

    def note_write(self) -> None:
        """Remember that the ledger itself wrote the weight last."""
        self.version = _version(self.handle)

    def require_unchanged(self) -> None:
        """Check that the weight still has the bits that the ledger gave it.

        Raises:
            LedgerError: If somebody else changed it.
        """
        if self.version is not None and self.version == _version(self.handle):
            return
        expected = (self.pristine.double() + self.total).to(self.handle.dtype)
        if not torch.equal(self.handle.read(self.handle.dtype), expected):
            raise LedgerError(
                f"{self.handle.name} was changed outside this ledger since its last edit (by "
                "another EditedModel of the same model, or by training), so nothing was written; "
                "undo that change first, or load the model again"
            )
        self.note_write()


@dataclass(frozen=True)
class NewValue:
    """What a weight would be with one more delta.

    Args:
        touched: The weight.
        total: Its total with the delta, in float64.
        value: Its value with the delta, in its own type.
        before: Its value without.
    """

    touched: EditedWeight
    total: Tensor
    value: Tensor
    before: Tensor

    def write(self) -> None:
        """Give the weight its new value."""
        self.touched.handle.write(self.value)
        self.touched.note_write()

    def revert(self) -> None:
        """Give the weight the bits that it had."""
        self.touched.handle.write(self.before)
        self.touched.note_write()

    @property
    def changes(self) -> bool:
        """Whether the new value has other bits."""
        return not torch.equal(self.before, self.value)


class EditedWeights:
    """The weights that deltas in force change.

    Args:
        model: The language model; nothing else may write these weights meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.touched: dict[str, EditedWeight] = {}

    def stage(self, delta: Delta) -> dict[str, NewValue]:
        """Compute every new value before anything is written, so that a commit is all or nothing.

        Args:
            delta: The update.

        Returns:
            New values by parameter name.

        Raises:
            NotFiniteError: If a weight with the delta is not finite.
            LedgerError: If somebody else changed a weight meanwhile.
        """
        self.require_unchanged(delta.weights)
        staged = {}
        for name, update in delta.weights.items():
            touched = self.touched.get(name) or self._read(name)
            total = touched.total + update.dense(device=touched.total.device)
            value = (touched.pristine.double() + total).to(touched.handle.dtype)
            if not torch.isfinite(value).all():
                raise NotFiniteError(
                    f"the edited {name} does not fit into {touched.handle.dtype}, so nothing was "
                    "written; load the model in a wider dtype, or regularise the edit more"
                )
            before = touched.handle.read(touched.handle.dtype).clone()
            staged[name] = NewValue(touched, total, value, before)
        return staged

    def require_unchanged(self, names: Iterable[str]) -> None:
        """Check that edited weights still have the bits that the edits in force give them.

        Args:
            names: Parameter names; those without an edit in force are not checked.

        Raises:
            LedgerError: If somebody else changed one.
        """
        for name in names:
            if name in self.touched:
                self.touched[name].require_unchanged()

    def keep(self, staged: dict[str, NewValue]) -> None:
        """Take new values that were written as those of the edits in force.

        Args:
            staged: By parameter name.
        """
        for name, new in staged.items():
            new.touched.total = new.total
            self.touched[name] = new.touched

    def rebuild(self, names: Iterable[str], in_force: Iterable[Delta]) -> None:
        """Form weights anew from the pristine values and the deltas in force, in their order.

        Args:
            names: The weights.
            in_force: All deltas in force, read once.
        """
        for name in names:
            if name not in self.touched:
                self.touched[name] = self._read(name)
        totals = {name: torch.zeros_like(self.touched[name].total) for name in sorted(set(names))}
        edited = set()
        for delta in in_force if totals else ():
            for name in totals.keys() & delta.weights.keys():
                totals[name] += delta.weights[name].dense(device=totals[name].device)
                edited.add(name)
        for name, total in totals.items():
            touched = self.touched[name]
            touched.total = total
            if name in edited:
                touched.handle.write(touched.pristine.double() + total)
                touched.note_write()
            else:  # the original bits, where no edit is left
                touched.handle.write(touched.pristine)
                del self.touched[name]

    def _read(self, name: str) -> EditedWeight:
        handle = weight(self.model, name)
        zero = torch.zeros(handle.shape, dtype=torch.float64, device=handle.device)
        return EditedWeight(handle, handle.read(handle.dtype), zero)


def _version(handle: Weight) -> int | None:
    """Return PyTorch's count of in-place writes; ``None`` for an inference tensor."""
    parameter = handle.raw()
    return None if parameter.is_inference() else parameter._version
