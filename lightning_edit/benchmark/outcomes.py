"""Results of benchmark cells: metrics as NumPy arrays, or a failure reason. No torch import."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_edit.benchmark.folders import CellFolder, Status
from lightning_edit.benchmark.grid import Cell
from lightning_edit.functional.bootstrap import Floats

#: Metrics of one request, by name.
_Values = Mapping[str, float]


@dataclass(frozen=True)
class CellOutcome:
    """Result of a cell: status, reason, metrics by request, timings.

    Args:
        cell: The cell.
        status: Its status.
        reason: Why there is no result; may be empty.
        points: Metrics by evaluation point and request; point 0 is the pristine model.
        timing: Seconds by stage, ``edits``, and ``peak_bytes`` where it was measured.
    """

    cell: Cell
    status: Status
    reason: str = ""
    points: Mapping[int, Mapping[str, _Values]] = field(default_factory=dict, repr=False)
    timing: Mapping[str, float] = field(default_factory=dict, repr=False)

    def time(self, name: str) -> float | None:
        """Return a time column's value; ``None`` if the cell is not done or did not record it."""
        if name == "peak_mb":
            peak = self.timing.get("peak_bytes")
            return None if peak is None else peak / 1e6
        stage = "edit_cpu_seconds" if name == "cpu_per_edit" else "edit_seconds"
        if self.status != "done" or stage not in self.timing:
            return None
        return self.timing[stage] / (1 if name == "seconds" else self.timing["edits"])


def read_outcomes(cells: Iterable[Cell], out: Path) -> list[CellOutcome]:
    """Read the results of cells from their folders.

    Args:
        cells: The cells.
        out: Folder of the benchmark.

    Returns:
        One outcome per cell, in order.
    """
    return [_read(cell, CellFolder(out, cell)) for cell in cells]


def _read(cell: Cell, folder: CellFolder) -> CellOutcome:
    status = folder.status
    # Scores count as soon as they are there, also where memory is still to be measured.
    if status == "done" or (status == "started" and folder.scores.exists()):
        found: dict[str, Any] = folder.read(folder.scores)
        memory = folder.read(folder.memory) if folder.memory.exists() else {}
        points = {int(after): requests for after, requests in found["points"].items()}
        return CellOutcome(cell, "done", "", points, found["timing"] | memory)
    if status == "failed":
        error = folder.read(folder.error)
        return CellOutcome(cell, status, f"{error['type']}: {error['message']}")
    reason = cell.absent or ""
    return CellOutcome(cell, status, reason)


def values_of(
    outcomes: Sequence[CellOutcome], after: int, column: str, requests: Sequence[str]
) -> Floats:
    """Return one metric of one method as an array of seeds by requests.

    Args:
        outcomes: The method's cells, one per seed.
        after: Evaluation point.
        column: Name of the metric.
        requests: Requests to look up.

    Returns:
        Shape (seeds, requests); NaN where a request lacks the metric.
    """
    nothing: Mapping[str, _Values] = {}
    return np.array(
        [
            [
                outcome.points.get(after, nothing).get(request, {}).get(column, np.nan)
                for request in requests
            ]
            for outcome in outcomes
        ]
    )
