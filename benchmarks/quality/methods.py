"""Keep the tables of a benchmark, and what they were measured on, under benchmarks/results.

Run:  python benchmarks/quality/methods.py [--out runs/benchmark/methods]
      python benchmarks/quality/methods.py --grid configs/benchmark/survey.yaml --name survey \
          --out runs/benchmark/survey
Tables none of whose cells is done are left out.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lightning_edit.benchmark.formats import as_csv, write
from lightning_edit.benchmark.kept import restore
from lightning_edit.benchmark.machine import machine
from lightning_edit.benchmark.outcomes import CellOutcome, read_outcomes
from lightning_edit.benchmark.parse import read_grid
from lightning_edit.benchmark.summary import summaries_of
from lightning_edit.benchmark.table import Table
from lightning_edit.benchmark.tables import tables_of

RESULTS = Path(__file__).parents[1] / "results"


def told(outcomes: list[CellOutcome]) -> str:
    """Return how many cells are behind the tables."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def has_results(table: Table) -> bool:
    """Return whether a line of the table has values of this benchmark."""
    return any(line.source == "ours" and any(line.values) for line in table.lines)


def main() -> None:
    """Write NAME_tables: .md, .csv with every number, .json with the machine and the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=Path, default=Path("configs/benchmark/methods.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/methods"))
    parser.add_argument("--name", default="methods", help="the files are NAME_tables.md, …")
    parser.add_argument("--note", default="", help="what else was going on, such as the load")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="rows; without it all")
    parser.add_argument("--kept", type=Path, help="folder of kept cells, as in `benchmark --kept`")
    options = parser.parse_args()
    grid = read_grid(options.grid)
    if options.methods:
        if unknown := sorted(set(options.methods) - {cell.method for cell in grid.cells}):
            raise SystemExit(f"{options.grid} has no methods {', '.join(unknown)}")
        chosen = tuple(cell for cell in grid.cells if cell.method in options.methods)
        grid = replace(grid, cells=chosen)
    if options.kept:
        restore(grid.cells, options.out, options.kept)
    outcomes = read_outcomes(grid.cells, options.out)
    tables = [table for table in tables_of(grid, outcomes) if has_results(table)]
    summaries = [table for table in summaries_of(grid, outcomes) if has_results(table)]
    made = machine()
    only = f" --methods {' '.join(options.methods)}" if options.methods else ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    head = (
        f"Made by `lightning-edit benchmark {options.grid}{only}` on {made['processor']} "
        f"({made['torch_threads']} thread a process). {versions}. {options.note}\n\n"
        f"Cells: {told(outcomes)}.\n\n"
    )
    body = write([*summaries, *tables], "markdown", 120, 1, grid)
    (RESULTS / f"{options.name}_tables.md").write_text(head + body)
    (RESULTS / f"{options.name}_tables.csv").write_text(as_csv(tables))
    record = {
        "machine": made,
        "grid": str(options.grid),
        "note": options.note,
        "cells": {outcome.cell.name: outcome.status for outcome in outcomes},
    }
    (RESULTS / f"{options.name}_tables.json").write_text(json.dumps(record, indent=1) + "\n")
    print(told(outcomes))


if __name__ == "__main__":
    main()
