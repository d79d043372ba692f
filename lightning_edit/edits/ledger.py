"""Ledger of edits: commit, undo, rollback and replay of weight deltas, exact to the bit.

The effective weight is always ``cast(W0 + Σ Δ)``: the pristine weight plus the float64 sum of all
deltas in the order of their commits, cast once. Nothing is ever added to or subtracted from a
rounded weight, so undoing everything restores the original bits, and replaying a journal gives the
same bits as the run that wrote it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import EditedWeight, EditedWeights
from lightning_edit.edits.entries import Entry, file_hash, select, select_undone
from lightning_edit.edits.in_force import EditsInForce, HistoryChange, load_entry
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.protocols import EditHistory, Runtime
from lightning_edit.edits.staged import StagedEdit
from lightning_edit.exceptions import LedgerError, NotFiniteError
from lightning_edit.functional.visible import visible
from lightning_edit.models.weights import weights_hash
from lightning_edit.storage.atomic import write_error
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)


class Ledger:
    """Ledger that commits deltas to one model and undoes them exactly.

    Args:
        model: The language model; nothing else may write its edited weights meanwhile.
        editor: Notified of every commit and undo, so that its history follows; ``None`` to replay
            weights only.
        directory: Folder of the journal; ``None`` keeps everything in memory.
        runtime: Installs what a delta holds beside updates of weights; without one a commit of such
            a delta is refused.
        ranks: The processes that commit the same deltas; the first one writes the journal.

    Raises:
        LedgerError: If the folder's journal is damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        editor: EditHistory | None = None,
        directory: Path | None = None,
        runtime: Runtime | None = None,
        ranks: OneProcess = ALONE,
    ) -> None:
        self.model = model
        self.editor = editor
        self.runtime = runtime
        self.journal = None if directory is None else Journal(directory, ranks)
        load = None if directory is None else partial(load_entry, directory)
        self.in_force = EditsInForce(load)
        self._undone: dict[int, tuple[Entry, Delta | None]] = {}
        self.weights = EditedWeights(model)
        self._ids: set[str] = set()
        self._next_seq = 1
        self._staging = False

    # ---------------------------------------------------------------------------------- reading

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests in force, in the order of their commits."""
        return tuple(request for entry in self.in_force.entries for request in entry.ids)

    @property
    def undone_ids(self) -> tuple[str, ...]:
        """Undone requests that :meth:`redo` can put back, in the order of their commits."""
        entries = (self._undone[seq][0] for seq in sorted(self._undone))
        names = dict.fromkeys(request for entry in entries for request in entry.ids)
        return tuple(name for name in names if name not in self._ids)

    @property
    def deltas(self) -> list[Delta]:
        """Deltas in force, in the order of their commits, all of them in memory."""
        return list(self.in_force)

    @property
    def touched(self) -> dict[str, EditedWeight]:
        """Weights that the deltas in force change, by parameter name, in alphabetical order."""
        return dict(sorted(self.weights.touched.items()))

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
        with self.staged(delta, requests) as trial:
            return trial.commit()

    @contextmanager
    def staged(self, delta: Delta, requests: Sequence[EditRequest]) -> Iterator[StagedEdit]:
        """Try a delta: inside the block the model has the bits that a commit would give it.

        Example::

            with ledger.staged(delta, requests) as trial:
                if good_enough(model):
                    trial.commit()  # else it is dropped at the end of the block

        Args:
            delta: The update.
            requests: The requests that it serves.

        Yields:
            The trial; without :meth:`StagedEdit.commit` nothing is left of it.

        Raises:
            LedgerError: If a request is in force already, the delta holds state that nobody
                installs, or another delta is being tried.
            NotFiniteError: If the delta, or a weight with it, is not finite. The model is unchanged
                in every case.
        """
        self._check(delta)
        trial = StagedEdit(delta, requests, self.weights.stage(delta), self._commit)
        acts = bool(delta.state or delta.prompts)
        self._staging = True
        try:
            for new in trial.staged.values():
                new.write()
            if self.runtime is not None and acts:
                self.runtime.install([*self.in_force, delta])
            yield trial
        finally:
            self._staging = False
            if trial.entry is None:
                for new in trial.staged.values():
                    new.revert()
                if self.runtime is not None and acts:
                    self.runtime.install(self.in_force)

    def _require_idle(self) -> None:
        if self._staging:
            raise LedgerError("another edit is being tried on this model; commit or drop it first")

    def _check(self, delta: Delta) -> None:
        self._require_idle()
        if double := sorted(set(delta.request_ids) & self._ids):
            raise LedgerError(
                f"already in force: {', '.join(double[:8])}; undo before another edit"
            )
        if broken := delta.not_finite():
            raise NotFiniteError(
                f"the update of {', '.join(broken)} is not finite, so nothing was written; lower "
                "the learning rate or raise the regularisation, and check the model's own outputs"
            )
        if (delta.state or delta.prompts) and self.runtime is None:
            held = ", ".join([*delta.state, *(["prompts"] if delta.prompts else [])][:4])
            raise LedgerError(
                f"the edit of {', '.join(delta.request_ids[:4])} acts at run time (it holds "
                f"{held}), but this ledger has nothing that installs that, so nothing was written; "
                "give the ledger a runtime, or open the run with its editor: "
                "EditedModel.open(run, editor=...)"
            )

    def _commit(self, trial: StagedEdit) -> Entry:
        delta = trial.delta
        entry = trial.entry = self._record(delta, trial.requests)
        self.weights.keep(trial.staged)
        self.in_force.append(entry, delta)
        self._ids.update(delta.request_ids)
        self._tell(HistoryChange("appended", (delta,)))
        changed = any(new.changes for new in trial.staged.values())
        if delta.is_empty or (delta.weights and not changed):
            log.warning(
                "The edit of %s changed no parameter: its update is empty, or smaller than the "
                "rounding of the weights.",
                visible(", ".join(delta.request_ids[:8])),
            )
        return entry

    def _tell(self, change: HistoryChange) -> None:
        if self.editor is not None:
            self.editor.on_history(self.in_force, change)

    def undo(self, ids: Sequence[str], by: str = "run") -> None:
        """Undo edits by request id, and restore the weights without them.

        Args:
            ids: Request ids. Requests that were solved together must be undone together.
            by: Who undoes them, for the journal.

        Raises:
            LedgerError: If a request is not in force, or shares a commit with one that stays.
            LedgerWriteError: If the journal cannot be written; the model is unchanged.
        """
        self._require_idle()
        if not ids:
            return
        gone = select(self.in_force.entries, ids)
        seqs = {entry.seq for entry in gone}
        # Read before anything changes: a file may be missing.
        removed = [self.in_force.delta(entry) for entry in gone]
        self.weights.require_unchanged({name for delta in removed for name in delta.weights})
        if self.journal is not None:
            self.journal.undo(sorted(seqs), by)
        kept = [None if self.journal is not None else delta for delta in removed]
        self._undone |= {e.seq: (e, d) for e, d in zip(gone, kept, strict=True)}
        self.in_force.remove(seqs)
        self._ids -= {request for entry in gone for request in entry.ids}
        names = {name for delta in removed for name in delta.weights}
        self.weights.rebuild(names, self.in_force)
        self._reinstall(removed)
        self._tell(HistoryChange("removed", tuple(removed)))

    def redo(self, ids: Sequence[str], by: str = "run") -> None:
        """Redo undone edits: put them back into force at their old positions.

        The model gets the bits that it had with them.

        Args:
            ids: Their requests. Requests that were solved together go together. Of several undone
                commits of a request the newest is taken.
            by: Who redoes them, for the journal.

        Raises:
            LedgerError: If a request was not undone, is in force again, or shares a commit with
                one that is not named; or a delta file is missing.
            LedgerWriteError: If the journal cannot be written; the model is unchanged.
        """
        self._require_idle()
        if not ids:
            return
        undone = [self._undone[seq][0] for seq in sorted(self._undone)]
        back = select_undone(undone, self.in_force.entries, ids)
        deltas = [self._undone[entry.seq][1] or self._load(entry) for entry in back]
        self.weights.require_unchanged({name for delta in deltas for name in delta.weights})
        if self.journal is not None:
            self.journal.redo([entry.seq for entry in back], by)
        for entry, delta in zip(back, deltas, strict=True):
            del self._undone[entry.seq]
            place = self.in_force.insert(entry, delta)
            self._ids.update(entry.ids)
            last = place == len(self.in_force) - 1
            kind: Literal["appended", "inserted"] = "appended" if last else "inserted"
            self.weights.rebuild(set(delta.weights), self.in_force)
            self._tell(HistoryChange(kind, (delta,), place))
        self._reinstall(deltas)

    def _reinstall(self, changed: Sequence[Delta]) -> None:
        if self.runtime is not None and any(one.state or one.prompts for one in changed):
            self.runtime.install(self.in_force)

    def _load(self, entry: Entry) -> Delta:
        assert self.journal is not None  # without a file every undone delta stays in memory
        return load_entry(self.journal.directory, entry)

    def rollback(self, commits: int = 1) -> None:
        """Roll back the last commits.

        Args:
            commits: Number of commits.

        Raises:
            LedgerError: If fewer are in force.
        """
        if not 0 <= commits <= len(self.in_force):
            raise LedgerError(
                f"cannot roll back {commits} commits: {len(self.in_force)} are in force"
            )
        entries = self.in_force.entries[len(self.in_force) - commits :]
        self.undo([request for entry in entries for request in entry.ids])

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
            LedgerError: If the ledger is not empty, or a delta file is missing or was changed. The
                model is unchanged then.
        """
        if self.journal is None or len(self.in_force):
            raise LedgerError("replay needs a journal on disk and a ledger without edits in force")
        if lines is not None:
            self.journal.truncate(lines)
        directory = self.journal.directory
        self._fill((one, load_entry(directory, one)) for one in self.journal.active())
        self._undone = {entry.seq: (entry, None) for entry in self.journal.undone()}
        self._tell(HistoryChange("replayed" if remember else "restored"))

    def take(self, edits: Sequence[tuple[Delta, Sequence[EditRequest]]]) -> None:
        """Put edits that were made elsewhere into force on a pristine model, all or none.

        Args:
            edits: Deltas in the order of their commits, each with its requests.

        Raises:
            LedgerError: If the ledger is not empty or has a journal, or a delta does not fit.
        """
        if self.journal is not None or len(self.in_force):
            raise LedgerError("edits are taken into a ledger in memory without edits in force")
        self._fill((self._record(delta, requests), delta) for delta, requests in edits)
        self._tell(HistoryChange("replayed"))

    def _fill(self, edits: Iterable[tuple[Entry, Delta]]) -> None:
        """Write edits into the empty model in order, and install what acts at run time once."""
        try:
            for entry, delta in edits:
                self._replay_entry(entry, delta)
            if self.runtime is not None:
                self.runtime.install(self.in_force)
        except BaseException:
            # A file may be missing in the middle; the model gets its own bits back.
            self.weights.rebuild(list(self.weights.touched), ())
            self.in_force.remove({entry.seq for entry in self.in_force.entries})
            self._ids.clear()
            if self.runtime is not None:
                self.runtime.install(self.in_force)
            raise

    def _replay_entry(self, entry: Entry, delta: Delta) -> None:
        self._check(delta)
        staged = self.weights.stage(delta)
        for new in staged.values():
            new.write()
        self.weights.keep(staged)
        self.in_force.append(entry, delta)
        self._ids.update(delta.request_ids)

    def _record(self, delta: Delta, requests: Sequence[EditRequest]) -> Entry:
        records = [request.to_dict() for request in requests]
        if self.journal is None:
            self._next_seq += 1
            return Entry(self._next_seq - 1, delta.request_ids, "", "", tuple(records))
        journal = self.journal
        name, sha256 = journal.ranks.first(lambda: _save(delta, journal))
        return journal.commit(delta.request_ids, name, sha256, records)


def _save(delta: Delta, journal: Journal) -> tuple[str, str]:
    """Write the delta file of a journal's next commit; return its name and hash."""
    name = f"{journal.next_seq:06d}.safetensors"
    path = journal.directory / name
    new = path.with_name("new.safetensors")
    journal.require_unchanged()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            delta.save(new)
            # Another process may have committed a file of this name meanwhile.
            journal.require_unchanged()
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        state = "The model and every earlier edit are unchanged."
        raise write_error(error, path, state) from error
    return name, file_hash(path)
