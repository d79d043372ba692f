"""``lightning-edit redo``: put undone edits of a run into force again. Loads no torch.

An edit comes back at its old position among the commits, so the weights have the bits that they had
before the undo.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.cli.undo import join_ids, open_journal, print_table
from lightning_edit.edits.journal import select_undone
from lightning_edit.exceptions import LedgerError, LightningEditError


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
    if not (options.ids or options.all or options.list):
        parser.error("say which edits: --ids ID … or --all (--list shows what was undone)")
    try:
        journal = open_journal(options.run)
        undone, active = journal.undone(), journal.active()
        ids = options.ids
        if options.all:
            # Not those that the run itself took back: each edit of `single`, what a guard refused.
            ids = [request for entry in journal.undone("user") for request in entry.ids]
            if not ids:
                raise LedgerError(
                    "no edit was undone by `lightning-edit undo`, so there is nothing to redo"
                )
        back = select_undone(undone, active, ids) if ids else []
        if missing := [
            entry.file for entry in back if not (journal.directory / entry.file).exists()
        ]:
            raise LedgerError(
                f"{journal.directory / missing[0]} is missing; restore the run folder as a whole"
            )
        if back:
            journal.redo([entry.seq for entry in back], by="user")
            names = [request for entry in back for request in entry.ids]
            active_count = sum(len(entry.ids) for entry in journal.active())
            sys.stdout.write(
                f"redid {join_ids(names)}; {active_count} in force. "
                "Scores in results.json are those of the run.\n"
            )
    except LightningEditError as error:
        sys.stderr.write(f"lightning-edit redo: {error}\n")
        return 2
    if options.list:
        print_table(journal.undone(), "undone")
    return 0
