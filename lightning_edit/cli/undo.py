"""``lightning-edit undo``: undo edits of a run. Loads no torch, so it starts fast.

A run's weights are defined by its journal: an undo appends one line to it, and every later export
or resume follows it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.edits.entries import Entry, select
from lightning_edit.edits.journal import Journal
from lightning_edit.edits.run_journal import open_journal
from lightning_edit.exceptions import LedgerError, LightningEditError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.run_lock import run_lock


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser of ``undo``."""
    parser = argparse.ArgumentParser(
        "lightning-edit undo",
        description="Undo edits of a run. Edits that were solved together are undone together.",
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
    """Run ``lightning-edit undo``.

    Args:
        argv: Arguments after ``undo``; ``None`` reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 after an error that the user can fix.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    chosen = bool(options.ids or options.last is not None or options.all)
    try:
        journal = open_journal(options.run)
        if not (chosen or options.list):
            parser.error("say which edits: --ids ID …, --last N or --all (--list shows them)")
        if chosen:
            with run_lock(options.run):
                # Read again under the lock: a run may have ended just now.
                journal = open_journal(options.run)
                _undo(journal, options.ids, options.last, options.all)
    except LightningEditError as error:
        sys.stderr.write(visible(f"lightning-edit undo: {error}\n"))
        return 2
    if options.list:
        print_table(journal.active())
    return 0


def _undo(journal: Journal, ids: Sequence[str] | None, last: int | None, everything: bool) -> None:
    selected = select_commits(journal, ids, last, everything)
    journal.undo([entry.seq for entry in selected], by="user")
    undone = [request for entry in selected for request in entry.ids]
    active_count = sum(len(entry.ids) for entry in journal.active())
    total = _count_edits(active_count + len(undone))
    sys.stdout.write(
        f"undid {visible(join_ids(undone))}; {active_count} of {total} in force. "
        "Scores in results.json are those from before.\n"
    )


def select_commits(
    journal: Journal, ids: Sequence[str] | None, last: int | None, everything: bool
) -> list[Entry]:
    """Select the commits to undo.

    Args:
        journal: The run's journal.
        ids: Ids of requests.
        last: Number of commits from the end.
        everything: Whether to select all.

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


def _count_edits(count: int) -> str:
    return "1 edit" if count == 1 else f"{count} edits"


def join_ids(ids: Sequence[str]) -> str:
    """Join the first ids of a list, and count the rest."""
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def print_table(entries: Sequence[Entry], what: str = "in force") -> None:
    """Print a table of commits.

    Args:
        entries: The commits.
        what: What they are, for the title.
    """
    from rich.table import Table
    from rich.text import Text

    from lightning_edit.report.console import VisibleConsole

    table = Table(title=f"{_count_edits(sum(len(entry.ids) for entry in entries))} {what}")
    for column in ("commit", "id", "prompt", "target"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        known = {str(request.get("id")): request for request in entry.requests}
        for name in entry.ids:
            request = known.get(name, {})
            texts = (entry.seq, name, request.get("prompt", ""), f"→ {request.get('target', '')}")
            # Text, not markup: a prompt may contain brackets.
            table.add_row(*(Text(visible(str(text))) for text in texts))
    VisibleConsole().print(table)
