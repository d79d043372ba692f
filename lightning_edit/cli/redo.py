"""``lightning-edit redo``: put undone edits of a run into force again. Loads no torch.

An edit comes back at its old position among the commits, so the weights have the bits that they had
before the undo.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.cli.undo import join_ids, print_table
from lightning_edit.edits.entries import select_undone
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.exceptions import LedgerError, LightningEditError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.run_lock import run_lock


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = argparse.ArgumentParser(
        "lightning-edit redo",
        description="Put edits of a run that were undone into force again, at their old positions.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", nargs="+", metavar="ID", help="redo these edits")
    which.add_argument("--all", action="store_true", help="redo every edit that `undo` took back")
    parser.add_argument("--list", action="store_true", help="list the edits that were undone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit redo``.

    Args:
        argv: Arguments after ``redo``; ``None``: those of the process.

    Returns:
        Exit code: 0, or 2 after an error that the user can fix.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    chosen = bool(options.ids or options.all)
    try:
        journal = open_journal(options.run)
        if not (chosen or options.list):
            parser.error("say which edits: --ids ID … or --all (--list shows what was undone)")
        if chosen:
            with run_lock(options.run):
                # Read again under the lock: a run may have ended just now.
                journal = open_journal(options.run)
                _redo(journal, options.ids, options.all)
    except LightningEditError as error:
        sys.stderr.write(visible(f"lightning-edit redo: {error}\n"))
        return 2
    if options.list:
        print_table(journal.undone(), "undone")
    return 0


def _redo(journal: Journal, ids: Sequence[str] | None, everything: bool) -> None:
    undone, active = journal.undone(), journal.active()
    if everything:
        # Not those that the run itself took back: each edit of `single`, what a guard refused.
        ids = [request for entry in journal.undone("user") for request in entry.ids]
        if not ids:
            raise LedgerError(
                "no edit was undone by `lightning-edit undo`, so there is nothing to redo"
            )
    back = select_undone(undone, active, ids or ())
    journal.require_files(back)
    journal.redo([entry.seq for entry in back], by="user")
    names = [request for entry in back for request in entry.ids]
    active_count = sum(len(entry.ids) for entry in journal.active())
    sys.stdout.write(
        f"redid {visible(join_ids(names))}; {active_count} in force. "
        "Scores in results.json are those of the run.\n"
    )
