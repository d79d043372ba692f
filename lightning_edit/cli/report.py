"""``lightning-edit report``: tables and HTML page of finished runs. Loads no torch."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import DataError
from lightning_edit.report.console import VisibleConsole
from lightning_edit.report.table import render
from lightning_edit.report.undone import undone_edits
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.results import read_results

_NAME = "report.html"


def show(results: Mapping[str, Any], folder: Path) -> None:
    """Print a run's result table, its timing and the paths of its result files.

    Args:
        results: Content of ``results.json``.
        folder: Folder of the run.
    """
    console = VisibleConsole(highlight=False)
    console.print(render(results))
    if sentence := undone_edits(folder if folder.is_dir() else folder.parent).sentence:
        console.print(sentence, style="yellow", soft_wrap=True, markup=False)
    timing = results["timing"]
    seconds = timing["edit_seconds"] / timing["edits"]
    per_edit = f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    console.print(
        f"\n{timing['edits']} edits, {per_edit} each; "
        f"scored in {timing['evaluate_seconds']:.1f} s. Results: {folder}/results.json, "
        "every probe with its text: cases.jsonl",
        soft_wrap=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit report",
        description="Show the tables of finished runs, and write one HTML page of them: "
        "what was edited, whether it held, what else moved. The page needs no network.",
    )
    parser.add_argument(
        "run", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a benchmark"
    )
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--out",
        "--html",  # its name in earlier versions
        type=Path,
        metavar="FILE",
        help=f"path of the page; default: {_NAME} in the run's folder, "
        "in the current folder for several runs",
    )
    page.add_argument("--no-html", action="store_true", help="tables only")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit report``.

    Args:
        argv: Arguments after ``report``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status.

    Raises:
        DataError: If a folder holds no finished run, nor tables of a benchmark.
        ReportError: If the page was requested with ``--out`` and cannot be written.
    """
    options = _parser().parse_args(argv)
    if len(options.run) == 1 and (options.run[0] / "cells").is_dir():
        return _show_benchmark(options.run[0], options.out, options.open)
    for folder in options.run:
        show(read_results(folder), folder)
    if not options.no_html:
        _write_report_page(options.run, options.out, options.open)
    return 0


def _show_benchmark(folder: Path, out: Path | None, open_it: bool) -> int:
    """Print the tables of a benchmark's folder, and say where its page is."""
    tables, page = folder / "tables.txt", folder / "page.html"
    if not tables.exists():
        raise DataError(
            f"{folder} is the folder of a benchmark without tables; finish a cell with "
            f"`lightning-edit benchmark GRID.yaml --out {folder}`"
        )
    sys.stdout.write(tables.read_text(encoding="utf-8"))
    if not page.exists():
        return 0
    if out is not None:
        write_atomic(out, page.read_bytes())
        page = out
    VisibleConsole(highlight=False).print(f"Page: {page}", soft_wrap=True, markup=False)
    if open_it:
        import webbrowser  # only here

        webbrowser.open(page.resolve().as_uri())
    return 0


def _write_report_page(runs: Sequence[Path], out: Path | None, open_it: bool) -> None:
    from lightning_edit.report.page import INSTALL, missing, write_page  # not for `--help`

    if out is None and (absent := missing()):
        # Tables are printed in any case; a missing page is an error only with --out.
        sys.stderr.write(f"No page: {' and '.join(absent)} not installed. For it: {INSTALL}\n")
        return
    first = runs[0] if runs[0].is_dir() else runs[0].parent
    page = write_page(runs, out or (first / _NAME if len(runs) == 1 else Path(_NAME)))
    VisibleConsole(highlight=False).print(
        f"Page: {page}, {page.stat().st_size / 1e6:.1f} MB; opens in any browser, offline",
        soft_wrap=True,
        markup=False,
    )
    if open_it:
        import webbrowser  # only here

        webbrowser.open(page.resolve().as_uri())
