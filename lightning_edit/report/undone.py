"""Edits that were undone by hand after a run, read from the journal of its ledger. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError

#: Ids to name in a sentence; the others are counted.
_MAX_NAMED = 8


@dataclass(frozen=True)
class Undone:
    """State of a run's edits after `lightning-edit undo` and `redo`.

    Args:
        ids: Requests that were undone by hand and are not in force, in the order of their commits.
        in_force: Number of requests that are in force.
        damage: Why the journal cannot be read; empty if it can.
    """

    ids: tuple[str, ...] = ()
    in_force: int = 0
    damage: str = ""

    @property
    def sentence(self) -> str:
        """What was undone, in one sentence; empty if nothing was."""
        if self.damage:
            return f"Whether edits were undone later is not known: {self.damage}."
        if not self.ids:
            return ""
        named = ", ".join(self.ids[:_MAX_NAMED])
        more = len(self.ids) - _MAX_NAMED
        listed = f"{named} and {more} more" if more > 0 else named
        verb = "was" if len(self.ids) == 1 else "were"
        total = self.in_force + len(self.ids)
        return (
            f"{listed} {verb} undone after the run: {self.in_force:,} of {total:,} edits in force. "
            "Answers and scores are those from before."
        )


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
    return Undone(tuple(name for name in undone if name not in in_force), len(in_force))
