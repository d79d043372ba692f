"""Journal of a run folder, checked against the record of the run's end.

A journal that was cut between two lines looks whole, since nothing follows; ``results.json`` knows
how long it was. Nothing here imports torch, so that ``undo`` starts fast.
"""

import json
import logging
from pathlib import Path
from typing import Any

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import LedgerError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

#: Protocol of a journal without a stream of edits: its deltas were made elsewhere.
OWN = "own"


def journal_end(journal: Journal) -> dict[str, Any]:
    """Return what identifies the present end of a journal, for ``results.json``.

    Args:
        journal: The journal of a run that has ended.
    """
    return {"lines": len(journal), "head": journal.head}


def open_journal(run: Path) -> Journal:
    """Open the journal of a run folder.

    Args:
        run: The run folder.

    Returns:
        The journal. If the run has not ended, a warning says so.

    Raises:
        LedgerError: If there is no journal, or it is damaged or shorter than at the run's end.
    """
    folder = RunFolder(run)
    journal = Journal(folder.ledger)
    if journal.opening is None:
        raise LedgerError(
            f"{run} holds no edits (no {journal.path}); give the folder that `lightning-edit edit` "
            "or EditTrainer().edit wrote"
        )
    if journal.opening.get("protocol") == OWN:
        return journal
    if not folder.results.exists():
        log.warning(
            "%s is not finished (it has no results.json): these are its edits so far, %d in force; "
            "`lightning-edit resume` goes on",
            visible(str(run)),
            sum(len(entry.ids) for entry in journal.active()),
        )
        return journal
    try:
        end = json.loads(folder.results.read_bytes()).get("journal")
    except (ValueError, AttributeError):
        return journal  # whoever needs the scores says that they cannot be read
    if end is not None:  # absent in records of older versions
        try:
            lines, head = int(end["lines"]), str(end["head"])
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"{folder.results}: `journal` must hold `lines` and `head`, got {end!r}; restore "
                "the run folder as a whole"
            ) from error
        journal.require_end(lines, head)
    return journal
