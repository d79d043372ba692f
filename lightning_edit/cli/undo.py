"""``lightning-edit undo``: take edits of a run back. Loads no torch, so it answers at once.

What a run's weights are is defined by its journal: an undo is one more line there, and whatever is
exported or resumed afterwards follows it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.edits.journal import Entry, Journal, select
from lightning_edit.exceptions import LedgerError, LightningEditError


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        "lightning-edit undo",
        description="Take edits of a run back. Edits that were solved together go together.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", nargs="+", metavar="ID", help="undo these edits")
    which.add_argument(
        "--last",
        type=int,
        metavar="N",
        help="undo the last N commits; edits that were solved together are one commit",
    )
    which.add_argument("--all", action="store_true", help="undo every edit")
    parser.add_argument("--list", action="store_true", help="list the edits in force")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``undo``; ``None``: those of the process.

    Returns:
        Exit code: 0, or 2 after an error that the user can mend.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if not (options.ids or options.last is not None or options.all or options.list):
        parser.error("say which edits: --ids ID …, --last N or --all (--list shows them)")
    try:
        journal = open_journal(options.run)
        gone = choose(journal, options.ids, options.last, options.all)
        if gone:
            journal.undo([entry.seq for entry in gone], by="user")
            stand = sum(len(entry.ids) for entry in journal.active())
            undone = [request for entry in gone for request in entry.ids]
            sys.stdout.write(
                f"undid {_listed(undone)}; {stand} of {_edits(stand + len(undone))} in force. "
                "Scores in results.json are those from before.\n"
            )
    except LightningEditError as error:
        sys.stderr.write(f"lightning-edit undo: {error}\n")
        return 2
    if options.list:
        _print_table(journal.active())
    return 0


def open_journal(run: Path) -> Journal:
    """Open the journal of a run.

    Raises:
        LedgerError: If there is none, or it is damaged.
    """
    journal = Journal(run / "ledger")
    if journal.opening is None:
        raise LedgerError(
            f"{run} holds no edits (no {journal.path}); "
            "give the folder that `lightning-edit edit` wrote"
        )
    return journal


def choose(
    journal: Journal, ids: Sequence[str] | None, last: int | None, everything: bool
) -> list[Entry]:
    """Find the commits to take back.

    Args:
        journal: The run's journal.
        ids: Requests by name.
        last: Number of commits from the end.
        everything: Whether all are meant.

    Returns:
        Commits in force, in order.

    Raises:
        LedgerError: If there are not that many, or a request is not in force by itself.
    """
    active = journal.active()
    if ids:
        return select(active, ids)
    if last is not None and not 1 <= last <= len(active):
        raise LedgerError(
            f"cannot undo the last {last} commits: {len(active)} are in force; "
            "give a number from 1 to that, or --list"
        )
    if everything and not active:
        raise LedgerError("no edit is in force, so there is nothing to undo")
    if everything:
        return active
    return active[-last:] if last else []


def _edits(count: int) -> str:
    return "1 edit" if count == 1 else f"{count} edits"


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def _print_table(entries: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{_edits(sum(len(entry.ids) for entry in entries))} in force")
    for column in ("commit", "id", "prompt", "target"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        known = {str(request.get("id")): request for request in entry.requests}
        for name in entry.ids:
            request = known.get(name, {})
            texts = (entry.seq, name, request.get("prompt", ""), f"→ {request.get('target', '')}")
            # Text, not markup: a prompt may contain brackets.
            table.add_row(*(Text(str(text)) for text in texts))
    Console().print(table)
