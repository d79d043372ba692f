"""Weights of a model under edit: pristine copies, float64 totals, and values formed from both.

The value of a weight is always ``cast(W0 + Σ Δ)``, formed from the pristine copy: nothing is added
to or subtracted from a rounded weight.
"""

from collections.abc import Iterable, Mapping
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
        fingerprint: PyTorch's count of in-place writes to it, and sums of its bits, after the
            ledger's last write.
    """

    handle: Weight
    pristine: Tensor
    total: Tensor
    fingerprint: tuple[int, Tensor, Tensor] | None = None

    def note_write(self) -> None:
        """Remember that the ledger itself wrote the weight last."""
        self.fingerprint = _fingerprint(self.handle)

    def show(self) -> None:
        """Give the weight its value with the deltas in force."""
        self.handle.write(self.pristine.double() + self.total)
        self.note_write()

    def hide(self) -> None:
        """Give the weight its original bits."""
        self.handle.write(self.pristine)
        self.note_write()

    def require_unchanged(self) -> None:
        """Check that the weight still has the bits that the ledger gave it.

        Raises:
            LedgerError: If somebody else changed it.
        """
        if _equal(self.fingerprint, _fingerprint(self.handle)):
            return
        # `model.to` changes type or device of what was written, and no value.
        written = (self.pristine.double() + self.total).to(self.pristine.dtype)
        expected = written.to(self.handle.device, self.handle.dtype)
        if not torch.equal(self.handle.read(self.handle.dtype), expected):
            raise LedgerError(
                f"{self.handle.name} was changed outside this ledger since its last edit (by "
                "another EditedModel of the same model, by training, or by merging an adapter), so "
                "nothing was written; undo that change first, or load the model again"
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
        return not torch.equal(self.before.to(self.value.device), self.value)


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
            _require_finite(touched.handle, value)
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

    def adopt(
        self, names: Iterable[str], totals: Mapping[str, Tensor], finite: bool = False
    ) -> None:
        """Form weights anew from their pristine values and totals; without one: the original bits.

        Args:
            names: The weights.
            totals: What all deltas in force add, in float64; see
                :class:`~lightning_edit.edits.totals.Totals`.
            finite: Whether values that are not finite are refused, before anything is written.

        Raises:
            NotFiniteError: If one is.
        """
        listed = sorted(set(names))
        read = {name: self.touched.get(name) or self._read(name) for name in listed}
        if finite:
            for name in totals.keys() & read.keys():
                one = read[name]
                _require_finite(one.handle, (one.pristine.double() + totals[name]))
        for name, touched in read.items():
            if name in totals:
                touched.total = totals[name]
                touched.show()
                self.touched[name] = touched
            else:
                touched.hide()
                self.touched.pop(name, None)

    def zero_total(self, name: str) -> Tensor:
        """Return zeros of a weight's shape, in float64 and on its device, to add deltas to.

        Args:
            name: Parameter name.
        """
        handle = weight(self.model, name)
        return torch.zeros(handle.shape, dtype=torch.float64, device=handle.device)

    def device(self, name: str) -> torch.device:
        """Return the device of a weight.

        Args:
            name: Parameter name.
        """
        return weight(self.model, name).device

    def _read(self, name: str) -> EditedWeight:
        handle = weight(self.model, name)
        return EditedWeight(handle, handle.read(handle.dtype), self.zero_total(name))


def _require_finite(handle: Weight, value: Tensor) -> None:
    if not torch.isfinite(value.to(handle.dtype)).all():
        raise NotFiniteError(
            f"the edited {handle.name} does not fit into {handle.dtype}, so nothing was "
            "written; load the model in a wider dtype, or regularise the edit more"
        )


_Fingerprint = tuple[int, Tensor, Tensor]

#: Whole numbers of as many bytes, to add up bits.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _fingerprint(handle: Weight) -> _Fingerprint | None:
    """Return what differs after a foreign write; ``None`` for an inference tensor.

    PyTorch's count of in-place writes, and the sums of the values' bits by row and by column: what
    writes through ``.data``, as PEFT's merging does, is not counted.
    """
    parameter = handle.raw()
    if parameter.is_inference():
        return None
    values, size = parameter.detach(), parameter.element_size()
    if values.dim() == 0:
        values = values[None]
    # Eight bytes at a time, where rows consist of such, take a twentieth of the time.
    rows = [values.shape[-1], values.storage_offset(), *values.stride()[:-1]]
    wide = values.stride(-1) == 1 and all(one * size % 8 == 0 for one in rows)
    bits = values.view(torch.int64 if wide else _BITS[size])
    return parameter._version, bits.sum(-1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)


def _equal(one: _Fingerprint | None, other: _Fingerprint | None) -> bool:
    if one is None or other is None or one[0] != other[0]:
        return False
    return all(
        a.device == b.device and torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True)
    )
