"""Ledger of edits: commit, undo, rollback and replay of weight deltas, exact to the bit.

The effective weight is always ``cast(W0 + Σ Δ)``: the pristine weight plus the float64 sum of all
deltas in the order of their commits, cast once. Nothing is ever added to or subtracted from a
rounded weight, so undoing everything restores the original bits, and replaying a journal gives the
same bits as the run that wrote it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.journal import Entry, Journal, file_hash, select
from lightning_edit.edits.protocols import EditHistory
from lightning_edit.exceptions import LedgerError, NotFiniteError
from lightning_edit.models.weights import Weight, weight, weights_hash
from lightning_edit.storage.atomic import write_error
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)


@dataclass
class EditedWeight:
    """Edited weight: its pristine values and the float64 sum of deltas.

    Args:
        handle: Handle of the current weight.
        pristine: Its values before the first edit, in its own dtype.
        total: Sum of all deltas in force, in float64.
    """

    handle: Weight
    pristine: Tensor
    total: Tensor


class Ledger:
    """Ledger that commits deltas to one model and undoes them exactly.

    Args:
        model: The language model; nothing else may write its edited weights meanwhile.
        editor: Notified of every commit and undo, so that its history follows; ``None`` to replay
            weights only.
        directory: Folder of the journal; ``None`` keeps everything in memory.

    Raises:
        LedgerError: If the folder's journal is damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        editor: EditHistory | None = None,
        directory: Path | None = None,
    ) -> None:
        self.model = model
        self.editor = editor
        self.journal = None if directory is None else Journal(directory)
        self._active: list[tuple[Entry, Delta]] = []
        self._touched: dict[str, EditedWeight] = {}
        self._ids: set[str] = set()
        self._next_seq = 1

    # ---------------------------------------------------------------------------------- reading

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Request ids of the edits in force, in the order of their commits."""
        return tuple(request for entry, _ in self._active for request in entry.ids)

    @property
    def deltas(self) -> list[Delta]:
        """Deltas in force, in the order of their commits."""
        return [delta for _, delta in self._active]

    @property
    def touched(self) -> dict[str, EditedWeight]:
        """Edited weights, by parameter name, in alphabetical order."""
        return dict(sorted(self._touched.items()))

    def update_norms(self) -> dict[str, float]:
        """Frobenius norm of the total update of each weight."""
        return {name: float(touched.total.norm()) for name, touched in self.touched.items()}

    # ---------------------------------------------------------------------------------- writing

    def commit(self, delta: Delta, requests: Sequence[EditRequest]) -> Entry:
        """Commit a delta: write it to the journal, then into the model's weights.

        Args:
            delta: The update.
            requests: The requests that it serves.

        Returns:
            The journal entry.

        Raises:
            LedgerError: If a request is in force already.
            NotFiniteError: If the delta, or an edited weight, is not finite.
            LedgerWriteError: If the disk write fails. The model is unchanged in every case.
        """
        if double := sorted(set(delta.request_ids) & self._ids):
            raise LedgerError(
                f"already in force: {', '.join(double[:8])}; undo before another edit"
            )
        if broken := delta.not_finite():
            raise NotFiniteError(
                f"the update of {', '.join(broken)} is not finite, so nothing was written; lower "
                "the learning rate or raise the regularisation, and check the model's own outputs"
            )
        staged = self._stage(delta)
        entry = self._record(delta, requests)
        changed = self._install(staged)
        self._active.append((entry, delta))
        self._ids.update(delta.request_ids)
        if self.editor is not None:
            self.editor.remember(delta)
        if delta.is_empty or (delta.weights and not changed):
            log.warning(
                "The edit of %s changed no parameter: its update is empty, or smaller than the "
                "rounding of the weights.",
                ", ".join(delta.request_ids[:8]),
            )
        return entry

    def undo(self, ids: Sequence[str], by: str = "run") -> None:
        """Undo edits by request id, and restore the weights without them.

        Args:
            ids: Request ids. Requests that were solved together must be undone together.
            by: Who undoes them, for the journal.

        Raises:
            LedgerError: If a request is not in force, or shares a commit with one that stays.
            LedgerWriteError: If the journal cannot be written; the model is unchanged.
        """
        if not ids:
            return
        gone = select([entry for entry, _ in self._active], ids)
        seqs = {entry.seq for entry in gone}
        if self.journal is not None:
            self.journal.undo(sorted(seqs), by)
        removed = [delta for entry, delta in self._active if entry.seq in seqs]
        self._active = [pair for pair in self._active if pair[0].seq not in seqs]
        self._ids -= {request for entry in gone for request in entry.ids}
        self._rebuild({name for delta in removed for name in delta.weights})
        if self.editor is not None:
            for delta in reversed(removed):
                self.editor.forget(delta)

    def rollback(self, commits: int = 1) -> None:
        """Roll back the last commits.

        Args:
            commits: Number of commits.

        Raises:
            LedgerError: If fewer are in force.
        """
        if not 0 <= commits <= len(self._active):
            raise LedgerError(
                f"cannot roll back {commits} commits: {len(self._active)} are in force"
            )
        entries = self._active[len(self._active) - commits :]
        self.undo([request for entry, _ in entries for request in entry.ids])

    # ----------------------------------------------------------------------------------- on disk

    def open(self, **facts: Any) -> None:
        """Open the journal, or check that it belongs to this model.

        Args:
            **facts: Further facts that must match, such as the editor's name.

        Raises:
            LedgerError: If the journal was opened with other facts.
        """
        if self.journal is not None:
            self.journal.open(model=weights_hash(self.model), **facts)

    def replay(self, lines: int | None = None, remember: bool = True) -> None:
        """Replay the journal on a pristine model.

        Args:
            lines: Truncate the journal to this many lines first; ``None``: keep all.
            remember: Whether the editor adds every delta to its history; otherwise a checkpoint has
                restored the history, and the editor only registers the deltas in force.

        Raises:
            LedgerError: If the ledger is not empty, or a delta file is missing or was changed.
        """
        if self.journal is None or self._active:
            raise LedgerError("replay needs a journal on disk and a ledger without edits in force")
        if lines is not None:
            self.journal.truncate(lines)
        for entry in self.journal.active():
            delta = load_entry(self.journal.directory, entry)
            self._install(self._stage(delta))
            self._active.append((entry, delta))
            self._ids.update(delta.request_ids)
            if self.editor is not None:
                update_history = self.editor.remember if remember else self.editor.recall
                update_history(delta)

    def _record(self, delta: Delta, requests: Sequence[EditRequest]) -> Entry:
        if self.journal is None:
            self._next_seq += 1
            return Entry(self._next_seq - 1, delta.request_ids, "", "", ())
        name = f"{self.journal.next_seq:06d}.safetensors"
        path = self.journal.directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            delta.save(path)
        except OSError as error:
            state = "The model and every earlier edit are unchanged."
            raise write_error(error, path, state) from error
        records = [request.to_dict() for request in requests]
        return self.journal.commit(delta.request_ids, name, file_hash(path), records)

    # ----------------------------------------------------------------------------------- weights

    def _stage(self, delta: Delta) -> dict[str, tuple[EditedWeight, Tensor, Tensor]]:
        """Compute every new weight before anything is written, so that a commit is atomic."""
        staged = {}
        for name, update in delta.weights.items():
            touched = self._touched.get(name)
            if touched is None:
                handle = weight(self.model, name)
                zero = torch.zeros(handle.shape, dtype=torch.float64, device=handle.device)
                touched = EditedWeight(handle, handle.read(handle.dtype), zero)
            total = touched.total + update.dense(device=touched.total.device)
            value = (touched.pristine.double() + total).to(touched.handle.dtype)
            if not torch.isfinite(value).all():
                raise NotFiniteError(
                    f"the edited {name} does not fit into {touched.handle.dtype}, so nothing was "
                    "written; load the model in a wider dtype, or regularise the edit more"
                )
            staged[name] = (touched, total, value)
        return staged

    def _install(self, staged: dict[str, tuple[EditedWeight, Tensor, Tensor]]) -> bool:
        changed = False
        for name, (touched, total, value) in staged.items():
            changed |= not torch.equal(touched.handle.read(touched.handle.dtype), value)
            touched.handle.write(value)
            touched.total = total
            self._touched[name] = touched
        return changed

    def _rebuild(self, names: set[str]) -> None:
        for name in sorted(names):
            touched = self._touched[name]
            updates = [delta.weights[name] for delta in self.deltas if name in delta.weights]
            touched.total = torch.zeros_like(touched.total)
            for update in updates:
                touched.total += update.dense(device=touched.total.device)
            # Without edits the pristine value itself is written, to restore the original bits.
            value = touched.pristine.double() + touched.total if updates else touched.pristine
            touched.handle.write(value)
            if not updates:
                del self._touched[name]


def load_entry(directory: Path, entry: Entry, device: str = "cpu") -> Delta:
    """Load a commit's delta file and verify its SHA-256 hash.

    Args:
        directory: The journal's folder.
        entry: The journal entry.
        device: Device of the tensors.

    Returns:
        The delta.

    Raises:
        LedgerError: If the file is missing or its hash differs.
    """
    path = directory / entry.file
    if not path.exists():
        raise LedgerError(f"{path} is missing; restore the run folder as a whole")
    if file_hash(path) != entry.sha256:
        raise LedgerError(
            f"{path} is not what the journal recorded (SHA-256 differs); "
            "restore it, or start the run again in a new folder"
        )
    return Delta.load(path, device)
