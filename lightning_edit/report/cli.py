"""``lightning-edit report``: show the table of finished runs. Nothing here imports torch."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_edit.report.results import read_results
from lightning_edit.report.table import render


def show(results: Mapping[str, Any], folder: Path) -> None:
    """Print a run's table, and where its results are.

    Args:
        results: A record as in ``results.json``.
        folder: The run's folder.
    """
    console = Console(highlight=False)
    console.print(render(results))
    timing = results["timing"]
    seconds = timing["edit_seconds"] / timing["edits"]
    per_edit = f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    console.print(
        f"\n{timing['edits']} edits, {per_edit} each; "
        f"scored in {timing['evaluate_seconds']:.1f} s. Results: {folder}/results.json, "
        "every probe with its text: cases.jsonl",
        soft_wrap=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``report``; ``None``: those of the process.

    Returns:
        Exit status.

    Raises:
        DataError: If a folder holds no finished run.
    """
    parser = argparse.ArgumentParser(
        "lightning-edit report", description="Show the table of finished runs again."
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    for folder in parser.parse_args(argv).run:
        show(read_results(folder), folder)
    return 0
