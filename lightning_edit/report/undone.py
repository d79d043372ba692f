"""Edits that were undone or added by hand after a run, read from its ledger. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.storage.run_folder import RunFolder

#: Ids to name in a sentence; the others are counted.
_MAX_NAMED = 8


@dataclass(frozen=True)
class Undone:
    """State of a run's edits after `lightning-edit undo` and `redo`.

    Args:
        ids: Requests that were undone by hand and are not in force, in the order of their commits.
        in_force: Number of requests that are in force.
        added: Requests that were written to the run after it and are in force; nothing scores them.
        damage: Why the journal cannot be read; empty if it can.
    """

    ids: tuple[str, ...] = ()
    in_force: int = 0
    added: tuple[str, ...] = ()
    damage: str = ""

    @property
    def sentence(self) -> str:
        """What was undone or added, in a sentence or two; empty if nothing was."""
        if self.damage:
            return f"Whether edits were undone later is not known: {self.damage}."
        found = []
        if self.ids:
            total = self.in_force + len(self.ids)
            found.append(
                f"{_listed(self.ids)} undone after the run: {self.in_force:,} of {total:,} edits "
                "in force."
            )
        if self.added:
            found.append(
                f"{_listed(self.added)} written after the run, and may change its answers."
            )
        return " ".join([*found, "Answers and scores are those from before."]) if found else ""


def undone_edits(folder: Path) -> Undone:
    """Read which edits of a run were undone by hand after it.

    What the run itself took back (protocol ``single``, a guard) does not count: its scores know.

    Args:
        folder: Folder of the run; one without a ledger has nothing undone.
    """
    if not (folder / "ledger" / "journal.jsonl").exists():
        return Undone()
    try:
        journal = Journal(folder / "ledger")
    except LedgerError as error:
        return Undone(damage=str(error))
    in_force = [request for entry in journal.active() for request in entry.ids]
    undone = dict.fromkeys(r for entry in journal.undone(by="user") for r in entry.ids)
    baseline, added = RunFolder(folder).baseline, []
    if baseline.exists():
        own = {row["edit_id"] for row in read_rows(baseline)}
        added = [name for name in in_force if name not in own]
    gone = tuple(name for name in undone if name not in in_force)
    return Undone(gone, len(in_force), tuple(added))


def _listed(ids: Sequence[str]) -> str:
    named = ", ".join(ids[:_MAX_NAMED])
    more = len(ids) - _MAX_NAMED
    listed = f"{named} and {more} more" if more > 0 else named
    return f"{listed} {'was' if len(ids) == 1 else 'were'}"
