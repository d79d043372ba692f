"""Measured cells as small files for version control, so that a grid is measured on many days."""

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_edit.benchmark.folders import CellFolder
from lightning_edit.benchmark.grid import Cell
from lightning_edit.exceptions import DataError
from lightning_edit.storage.atomic import write_atomic


def keep(cell: Cell, out: Path, kept: Path) -> Path | None:
    """Write a measured cell as one compressed JSON file.

    The file holds the cell's specification, the metrics of each request and, where the grid asks
    for it, peak memory; not the run itself. Equal results give equal bytes (of one zlib).

    Args:
        cell: The cell.
        out: Folder of the benchmark.
        kept: Folder of kept cells; made where absent.

    Returns:
        The file; ``None`` where the cell is not done.
    """
    folder = CellFolder(out, cell)
    if folder.status != "done":
        return None
    content = {"cell": cell.spec, "scores": folder.read(folder.scores)}
    if folder.memory.exists():
        content["memory"] = folder.read(folder.memory)
    text = json.dumps(content, separators=(",", ":"), default=str)
    path = _path(cell, kept)
    kept.mkdir(parents=True, exist_ok=True)
    write_atomic(path, gzip.compress(text.encode(), mtime=0))
    return path


def restore(cells: Iterable[Cell], out: Path, kept: Path) -> int:
    """Take kept results for cells that have none in a benchmark's folder.

    A cell's name ends in a digest of its specification: results with other settings are not found.
    Files that the specification names (a checkpoint, records, a model folder) are known by path
    alone; where one has changed, its cells are to be removed.

    Args:
        cells: The cells.
        out: Folder of the benchmark.
        kept: Folder of kept cells.

    Returns:
        Number of cells whose results were taken.

    Raises:
        DataError: If a file is not what :func:`keep` writes.
    """
    taken = 0
    for cell in cells:
        folder, path = CellFolder(out, cell), _path(cell, kept)
        if folder.status in ("done", "absent") or not path.exists():
            continue
        content = _read(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_json(folder.specification, content["cell"])
        if "memory" in content:
            folder.write_json(folder.memory, content["memory"])
        folder.write_json(folder.scores, content["scores"])  # last: it makes the cell count as done
        taken += 1
    return taken


def _path(cell: Cell, kept: Path) -> Path:
    return kept / f"{cell.name}.json.gz"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it, or restore it") from error
    if not isinstance(content, dict) or not {"cell", "scores"} <= content.keys():
        raise DataError(
            f"{path}: expected an object with `cell` and `scores`, as --kept writes them; remove it"
        )
    return content
