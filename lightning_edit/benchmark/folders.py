"""Run folders and status of a benchmark's cells. Nothing here imports torch."""

import json
from pathlib import Path
from typing import Any, Literal

from lightning_edit.benchmark.grid import Cell
from lightning_edit.exceptions import DataError
from lightning_edit.storage.run_folder import RunFolder

Status = Literal["done", "failed", "started", "open", "absent"]


class CellFolder(RunFolder):
    """Run folder of a benchmark cell, with additional files.

    * ``cell.json``: specification of the cell.
    * ``scores.json``: metrics of every request, from which the bootstrap draws; its presence means
      that the edits are done.
    * ``memory.json``: their peak memory, where the grid asks for it.
    * ``error.json``: why it failed.

    Args:
        out: Folder of the benchmark.
        cell: The cell.
    """

    def __init__(self, out: Path, cell: Cell) -> None:
        super().__init__(out / "cells" / cell.name)
        self.cell = cell

    @property
    def specification(self) -> Path:
        """Path of ``cell.json``, the cell's specification."""
        return self.path / "cell.json"

    @property
    def scores(self) -> Path:
        """Path of ``scores.json``, metrics of every request by evaluation point."""
        return self.path / "scores.json"

    @property
    def memory(self) -> Path:
        """Path of ``memory.json``, the peak memory of the cell's edits, where the grid asks it."""
        return self.path / "memory.json"

    @property
    def error(self) -> Path:
        """Path of ``error.json``, written when the cell failed."""
        return self.path / "error.json"

    @property
    def lock(self) -> Path:
        """Path of the lock file, held by the process that runs the cell."""
        return self.path / ".lock"

    @property
    def status(self) -> Status:
        """Status of the cell: done, failed, started, open or absent."""
        if self.cell.absent is not None:
            return "absent"
        if self.scores.exists() and (self.memory.exists() or not self.cell.memory):
            return "done"
        if self.error.exists():
            return "failed"
        return "started" if self.has_run else "open"

    def read(self, path: Path) -> dict[str, Any]:
        """Read one of the cell's JSON files.

        Raises:
            DataError: If it is not a JSON object.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); remove the cell's folder and run it again"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected an object, got {type(value).__name__}")
        return value
