"""Ledger of edits: commit, undo, rollback and replay of weight deltas, exact to the bit.

The effective weight is always ``cast(W0 + Σ Δ)``: the pristine weight plus the float64 sum of all
deltas in the order of their commits, cast once. Nothing is ever added to or subtracted from a
rounded weight, so undoing everything restores the original bits, and replaying a journal gives the
same bits as the run that wrote it.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_weights import EditedWeight, EditedWeights
from lightning_edit.edits.entries import Entry, select, select_undone
from lightning_edit.edits.in_force import EditsInForce, HistoryChange, load_entry
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.protocols import EditHistory, Runtime
from lightning_edit.edits.recording import record
from lightning_edit.edits.snapshots import Snapshot
from lightning_edit.edits.staged import StagedEdit
from lightning_edit.edits.summing import SNAPSHOT_EVERY, Summing
from lightning_edit.exceptions import LedgerError, NotFiniteError
from lightning_edit.functional.visible import visible
from lightning_edit.models.weights import weights_hash
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
        snapshot_every: Commits between two snapshots of the totals in the folder, from which a
            replay and an undo begin; 0: none is written. With a ``runtime`` none is written either,
            since what acts is built from all deltas.

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
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        self.model = model
        self.editor = editor
        self.runtime = runtime
        self.journal = None if directory is None else Journal(directory, ranks)
        load = None if directory is None else partial(load_entry, directory)
        self.in_force = EditsInForce(load)
        self._undone: dict[int, tuple[Entry, Delta | None]] = {}
        self.weights = EditedWeights(model)
        # What acts at run time is built from all deltas, so a snapshot would spare nothing.
        self.sums = Summing(self.weights, self.journal, snapshot_every if runtime is None else 0)
        self._seqs: dict[str, int] = {}
        self._next_seq = 1
        self._staging = False

    # ---------------------------------------------------------------------------------- reading

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests in force, in the order of their commits."""
        return tuple(request for entry in self.in_force.entries for request in entry.ids)

    def holds(self, request: str) -> bool:
        """Return whether a request is in force.

        Args:
            request: Its id.
        """
        return request in self._seqs

    @property
    def undone_ids(self) -> tuple[str, ...]:
        """Undone requests that :meth:`redo` can put back, in the order of their commits."""
        entries = (self._undone[seq][0] for seq in sorted(self._undone))
        names = dict.fromkeys(request for entry in entries for request in entry.ids)
        return tuple(name for name in names if name not in self._seqs)

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
        if double := sorted(one for one in set(delta.request_ids) if one in self._seqs):
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
        self._seqs |= dict.fromkeys(entry.ids, entry.seq)
        self._tell(HistoryChange("appended", (delta,)))
        changed = any(new.changes for new in trial.staged.values())
        if delta.is_empty or (delta.weights and not changed):
            log.warning(
                "The edit of %s changed no parameter: its update is empty, or smaller than the "
                "rounding of the weights.",
                visible(", ".join(delta.request_ids[:8])),
            )
        self.sums.committed(self.in_force.entries)
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
        gone = self._select(ids)
        seqs = {entry.seq for entry in gone}
        # Everything is read before anything changes: a file may be missing.
        removed = [self.in_force.delta(entry) for entry in gone]
        names = {name for delta in removed for name in delta.weights}
        left = [entry for entry in self.in_force.entries if entry.seq not in seqs]
        self.weights.require_unchanged(names)
        totals = self._resum(left, self.in_force.delta, names)
        if self.journal is not None:
            self.journal.undo(sorted(seqs), by)
        kept = [None if self.journal is not None else delta for delta in removed]
        self._undone |= {e.seq: (e, d) for e, d in zip(gone, kept, strict=True)}
        self.in_force.remove(seqs)
        for name in (request for entry in gone for request in entry.ids):
            del self._seqs[name]
        self.weights.adopt(names, totals)
        self.sums.tidy(left)
        self._reinstall(removed)
        self._tell(HistoryChange("removed", tuple(removed)))

    def _select(self, ids: Sequence[str]) -> list[Entry]:
        """Find the commits in force of some requests, without a look at all the others."""
        if not all(name in self._seqs for name in ids):
            return select(self.in_force.entries, ids)  # says what is in force
        return select(self.in_force.of({self._seqs[name] for name in ids}), ids)

    def _resum(
        self, entries: Sequence[Entry], load: Callable[[Entry], Delta], names: Collection[str]
    ) -> dict[str, Tensor]:
        """Sum up some weights over commits; no delta is read for none."""
        return self.sums.over(entries, load, self.sums.base(entries), names) if names else {}

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
        deltas = {one.seq: self._undone[one.seq][1] or self._load(one) for one in back}
        names = {name for delta in deltas.values() for name in delta.weights}
        merged = sorted([*self.in_force.entries, *back], key=lambda entry: entry.seq)
        self.weights.require_unchanged(names)
        totals = self._resum(
            merged, lambda entry: deltas.get(entry.seq) or self.in_force.delta(entry), names
        )
        if self.journal is not None:
            self.journal.redo([entry.seq for entry in back], by)
        self.weights.adopt(names, totals)
        self.sums.tidy(merged)
        for entry in back:
            del self._undone[entry.seq]
            place = self.in_force.insert(entry, deltas[entry.seq])
            self._seqs |= dict.fromkeys(entry.ids, entry.seq)
            last = place == len(self.in_force) - 1
            kind: Literal["appended", "inserted"] = "appended" if last else "inserted"
            self._tell(HistoryChange(kind, (deltas[entry.seq],), place))
        self._reinstall(list(deltas.values()))

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
            self.sums.truncate(lines)
        active = self.journal.active()
        base = self.sums.base(active)
        self.journal.require_there(active[: 0 if base is None else base.count])
        self._fill(active, self._load, base)
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
        entries = [self._record(delta, requests) for delta, requests in edits]
        deltas = {entry.seq: delta for entry, (delta, _) in zip(entries, edits, strict=True)}
        self._fill(entries, lambda entry: deltas[entry.seq])
        self._tell(HistoryChange("replayed"))

    def _fill(
        self,
        entries: Sequence[Entry],
        load: Callable[[Entry], Delta],
        base: Snapshot | None = None,
    ) -> None:
        """Write edits into the empty model, and install what acts at run time, once.

        Args:
            entries: The edits, in order.
            load: Returns the delta of one.
            base: Totals of the first of them, whose deltas are not read.
        """

        def taken(entry: Entry) -> Delta:
            delta = load(entry)
            self._check(delta)
            self._put([entry])
            self.in_force.keep(entry, delta)
            return delta

        try:
            self._put(entries[: 0 if base is None else base.count])
            totals = self.sums.over(entries, taken, base)
            self.weights.adopt(totals, totals, finite=True)
            if self.runtime is not None:
                self.runtime.install(self.in_force)
        except BaseException:
            # A file may be missing in the middle; the model gets its own bits back.
            self.weights.adopt(list(self.weights.touched), {})
            self.in_force.remove({entry.seq for entry in self.in_force.entries})
            self._seqs.clear()
            if self.runtime is not None:
                self.runtime.install(self.in_force)
            raise

    def _put(self, entries: Sequence[Entry]) -> None:
        self.in_force.extend(entries)
        for entry in entries:
            self._seqs |= dict.fromkeys(entry.ids, entry.seq)

    def _record(self, delta: Delta, requests: Sequence[EditRequest]) -> Entry:
        records = [request.to_dict() for request in requests]
        if self.journal is not None:
            return record(self.journal, delta, records)
        self._next_seq += 1
        return Entry(self._next_seq - 1, delta.request_ids, "", "", tuple(records))
