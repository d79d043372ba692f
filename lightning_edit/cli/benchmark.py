"""``lightning-edit benchmark``: run a benchmark grid cell by cell, and print its tables."""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_edit.benchmark.folders import CellFolder
from lightning_edit.benchmark.grid import Cell, Grid, shard
from lightning_edit.benchmark.kept import keep, restore
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.benchmark.slurm import SlurmOptions, submit
from lightning_edit.cli.slurm_options import add_launcher_options, slurm_options
from lightning_edit.exceptions import ConfigError
from lightning_edit.report import sweep_plots
from lightning_edit.report.console import VisibleConsole
from lightning_edit.storage.atomic import write_atomic

if TYPE_CHECKING:
    from lightning_edit.benchmark.run import Outcome

_FORMATS = ("text", "markdown", "latex", "csv", "json")
_SUFFIX = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}
#: What cells are made of, with how a cell names it.
_AXES: dict[str, Callable[[Cell], str]] = {
    "methods": lambda cell: cell.method,
    "models": lambda cell: cell.model,
    "data": lambda cell: cell.data,
    "protocols": lambda cell: cell.protocol,
}
#: Name of the page in a benchmark's folder.
PAGE = "page.html"
#: Width of the text table that is written to a file, in columns.
_TABLE_WIDTH = 120


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "lightning-edit benchmark",
        description="Run every unfinished cell of a grid, and print its tables.",
        epilog="Run it again to resume after an interruption; several processes may run at once.",
    )
    parser.add_argument("grid", type=Path, help="YAML file of the grid, see configs/benchmark")
    parser.add_argument("--out", type=Path, help="folder; default: runs/benchmark/NAME")
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="run only every N-th cell, from the I-th on"
    )
    for axis in _AXES:
        parser.add_argument(
            f"--{axis}", nargs="+", metavar="NAME", help=f"run and tabulate only these {axis}"
        )
    parser.add_argument(
        "--kept",
        type=Path,
        metavar="FOLDER",
        help="folder for version control with a small file for each measured cell: cells found "
        "there count as done, and cells that get done are added",
    )
    parser.add_argument("--retry", action="store_true", help="run cells that failed once more")
    parser.add_argument("--list", action="store_true", help="list the cells and their status")
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="draw the summary and an overview too, methods x aspects: png, pdf or svg; needs the "
        "extra `plot`; with --table the page is written as well",
    )
    parser.add_argument(
        "--table", choices=_FORMATS, help="run nothing; print the tables of the finished cells"
    )
    add_launcher_options(parser)
    return parser.parse_args(argv)


def _shard(text: str, cells: Sequence[Cell]) -> list[Cell]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ConfigError(f"--shard {text!r}: expected I/N, such as 1/4")
    return shard(cells, int(number), int(of))


def _chosen(grid: Grid, options: argparse.Namespace) -> list[Cell]:
    """Return the cells of the named methods, models, data and protocols; all where none is."""
    cells = list(grid.cells)
    for axis, name_of in _AXES.items():
        names: list[str] | None = getattr(options, axis)
        if names is None:
            continue
        known = list(dict.fromkeys(name_of(cell) for cell in grid.cells))
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                f"--{axis} {' '.join(unknown)}: not in {grid.path}, which has {', '.join(known)}"
            )
        cells = [cell for cell in cells if name_of(cell) in names]
    return cells


def _absent_models(grid: Grid) -> dict[str, str]:
    """Return optional models that are absent from this machine, with the path of each."""
    return {
        name: str(model["lm"])
        for name, model in grid.models.items()
        if model.get("optional") and not Path(model["lm"]).expanduser().exists()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit benchmark``.

    Args:
        argv: Arguments after ``benchmark``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0 if every selected cell is done, 1 if interrupted or if a cell failed.
    """
    options = _parse(argv)
    sweep_plots.check_formats(options.figures)
    slurm = slurm_options(options)
    grid = read_grid(options.grid)
    out = options.out or Path("runs") / "benchmark" / grid.path.stem
    absent = _absent_models(grid)
    chosen = _chosen(grid, options)
    available = [cell for cell in chosen if cell.model not in absent]
    kept: Path | None = options.kept
    if kept is not None:
        restore(available, out, kept)
    if options.table is not None:
        width = shutil.get_terminal_size((_TABLE_WIDTH, 24)).columns
        sys.stdout.write(_render_tables(grid, available, out, options.table, width))
        if options.figures:
            _draw(grid, available, out, options.figures)
            _write_page(grid, available, out)
        return 0
    console = VisibleConsole(highlight=False, soft_wrap=True)
    for name, place in absent.items():
        console.print(f"{place} is absent: the cells of model {name} are left out.")
    cells = _shard(options.shard, available)
    if options.list:
        for cell in cells:
            console.print(f"{CellFolder(out, cell).status:<9}{cell.title}", markup=False)
        return 0
    todo = _pending(grid, cells, out, options.retry, console)
    if slurm is not None and todo and not options.slurm_wait:
        _submit(grid, todo, out, slurm, False, console)
        return 0
    if not cells:
        return 0
    try:
        if todo and slurm is not None:
            _submit(grid, todo, out, slurm, True, console)
        elif todo:
            _run_pending(grid, todo, out, console, kept)
    except (KeyboardInterrupt, SystemExit):
        sys.stderr.write("Interrupted. Finished work is kept; repeat the same command to resume.\n")
        return 1
    if kept is not None:
        count = sum(keep(cell, out, kept) is not None for cell in available)
        console.print(f"Measured cells in {kept}: {count} of this selection")
    status = _report(grid, cells, available, out, console)
    for path in _draw(grid, available, out, options.figures):
        console.print(f"Figure: {path}")
    return status


def _pending(
    grid: Grid, cells: Sequence[Cell], out: Path, retry: bool, console: VisibleConsole
) -> list[Cell]:
    """Say how the cells stand, and return those to run."""
    wanted = ("open", "started", "failed") if retry else ("open", "started")
    counts = Counter(CellFolder(out, cell).status for cell in cells)
    status_counts = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    console.print(
        f"{grid.title}: {len(cells)} cells in {out} ({status_counts or 'nothing to run'})"
    )
    return [cell for cell in cells if CellFolder(out, cell).status in wanted]


def _submit(
    grid: Grid,
    todo: Sequence[Cell],
    out: Path,
    options: SlurmOptions,
    wait: bool,
    console: VisibleConsole,
) -> None:
    """Submit cells as a job array; wait for its tasks where that is asked for."""
    submission = submit(grid, todo, out, options)
    tasks = len(submission.jobs)
    console.print(
        f"Submitted {len(todo)} cells as job {submission.job}, {tasks} tasks; what they print is "
        f"in {submission.logs}"
    )
    if not wait:
        console.print(
            "How they stand: the same command with --list. Tables: --table text. What is not done "
            "when the job has ended: the same command again."
        )
        return
    for number, told in submission.wait():
        console.print(f"{number} of {tasks} tasks: {told}", markup=False)


def _report(
    grid: Grid, cells: Sequence[Cell], available: Sequence[Cell], out: Path, console: VisibleConsole
) -> int:
    """Write and print the tables; return the exit status."""
    for table_format, suffix in _SUFFIX.items():
        path = out / f"tables.{suffix}"
        write_atomic(
            path, _render_tables(grid, available, out, table_format, _TABLE_WIDTH).encode()
        )
    console.print()
    sys.stdout.write(_render_tables(grid, available, out, "text", console.width))
    console.print(f"Tables: {out}/tables.txt, .md, .tex, .csv, .json; runs: {out}/cells")
    if page := _write_page(grid, available, out):
        console.print(f"Page: {page}; opens in any browser, offline")
    counts = Counter(CellFolder(out, cell).status for cell in cells)
    if counts["failed"]:
        console.print(
            f"{counts['failed']} of {len(cells)} cells failed; the reasons are below the tables, "
            "the tracebacks in error.json of their folders. --retry runs them again.",
        )
    if unfinished := counts["open"] + counts["started"]:
        console.print(
            f"{unfinished} of {len(cells)} cells are not done: another process runs them, or has "
            "ended before its time. The same command goes on."
        )
    return 1 if counts["failed"] or unfinished else 0


def _run_pending(
    grid: Grid, todo: Sequence[Cell], out: Path, console: VisibleConsole, kept: Path | None
) -> None:
    # Lightning takes seconds to import; listing cells and printing tables does not need it.
    from lightning_edit.benchmark.quiet import quiet
    from lightning_edit.benchmark.run import run_cells

    quiet()
    begin, done = time.monotonic(), 0
    with console.status("") as status:

        def remaining() -> str:
            if not done:
                return f"{len(todo)} cells to do"
            seconds = (time.monotonic() - begin) / done * (len(todo) - done)
            return (
                f"{done} of {len(todo)} cells done, about {timedelta(seconds=round(seconds))} left"
            )

        def on_start(cell: Cell) -> None:
            status.update(f"{cell.title} ({remaining()})")

        def on_end(outcome: "Outcome") -> None:
            nonlocal done
            done += 1
            if kept is not None:
                keep(outcome.cell, out, kept)
            console.print(
                f"{outcome.cell.title}: {outcome.told} ({outcome.seconds:.0f} s; {remaining()})",
                markup=False,
            )

        run_cells(grid, todo, out, on_end, on_start)


def _render_tables(
    grid: Grid, cells: Sequence[Cell], out: Path, table_format: str, width: int
) -> str:
    from lightning_edit.benchmark.formats import write
    from lightning_edit.benchmark.outcomes import read_outcomes
    from lightning_edit.benchmark.summary import summaries_of
    from lightning_edit.benchmark.tables import tables_of

    outcomes = read_outcomes(cells, out)
    tables = tables_of(grid, outcomes)
    if table_format not in ("csv", "json"):  # whose records would stand there twice
        tables = [*summaries_of(grid, outcomes), *tables]
    return write(tables, table_format, width, len({cell.seed for cell in cells}), grid)


def _write_page(grid: Grid, cells: Sequence[Cell], out: Path) -> Path | None:
    """Write the page of the finished cells; ``None`` where the extra `report` is absent."""
    from lightning_edit.report.page import INSTALL, missing

    if "jinja2" in missing():
        sys.stderr.write(f"No page: jinja2 is not installed. For it: {INSTALL}\n")
        return None
    from lightning_edit.benchmark.formats import legend
    from lightning_edit.benchmark.outcomes import read_outcomes
    from lightning_edit.benchmark.overview import panel_of
    from lightning_edit.benchmark.summary import summaries_of
    from lightning_edit.benchmark.tables import tables_of
    from lightning_edit.report.grid_page import write_grid_page

    outcomes = read_outcomes(cells, out)
    words = [grid.note, legend(len({cell.seed for cell in cells}), "bold in the other formats")]
    return write_grid_page(
        grid.title,
        words,
        [panel_of(table) for table in summaries_of(grid, outcomes)],
        [panel_of(table) for table in tables_of(grid, outcomes)],
        out / PAGE,
    )


def _draw(grid: Grid, cells: Sequence[Cell], out: Path, formats: Sequence[str]) -> list[Path]:
    """Draw the summary and the overview of the finished cells."""
    if not formats or not sweep_plots.available():
        return []
    from lightning_edit.benchmark.outcomes import read_outcomes
    from lightning_edit.benchmark.overview import first_tables, panel_of
    from lightning_edit.benchmark.summary import summaries_of
    from lightning_edit.benchmark.tables import tables_of
    from lightning_edit.report.overview_plot import plot_overview

    outcomes = read_outcomes(cells, out)
    summary = [panel_of(table) for table in summaries_of(grid, outcomes)]
    every = [panel_of(table, shares_only=True) for table in first_tables(tables_of(grid, outcomes))]
    paths = []
    if any(panel.has_scores for panel in summary):
        paths += sweep_plots.save(plot_overview(summary, across=2), out / "summary", formats)
    return paths + sweep_plots.save(plot_overview(every), out / "overview", formats)
