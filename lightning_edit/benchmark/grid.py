"""Benchmark grid: cells (one run each), table columns, published figures. No import of torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import ConfigError


@dataclass(frozen=True)
class Cell:
    """One cell of a benchmark grid: a run of one method, model, data set, protocol and seed.

    Args:
        model: Name of the language model in the grid.
        data: Name of the data.
        protocol: Name of the protocol.
        method: Name of the method.
        seed: Random seed of the run.
        spec: Full specification of the run as plain containers: ``lm``, ``data``, ``editor``,
            ``protocol``, ``modes``, ``seed``.
        absent: Why the grid skips this run; ``None``: it is run.
        memory: Whether the peak memory of its edits is measured too, in a process of its own.
    """

    model: str
    data: str
    protocol: str
    method: str
    seed: int
    spec: Mapping[str, Any] = field(repr=False)
    absent: str | None = None
    memory: bool = False

    @property
    def digest(self) -> str:
        """Hash of the specification: eight hexadecimal digits of SHA-256."""
        text = json.dumps(self.spec, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Folder name of the run; it changes with the specification."""
        place = "-".join((self.model, self.data, self.protocol, self.method, str(self.seed)))
        return f"{place}-{self.digest}"

    @property
    def planned(self) -> tuple[int, ...]:
        """Evaluation points known before the run; the last only with a limit on the edits."""
        if self.spec["protocol"]["protocol"] == "single":
            return (1,)  # every request is scored after its own edit
        limit = self.spec["data"].get("init_args", {}).get("limit")
        points = {point for point in self.spec["protocol"].get("eval_at") or () if point != "end"}
        if limit is None:
            return tuple(sorted(points))
        return tuple(sorted({point for point in points if point < limit} | {limit}))

    @property
    def title(self) -> str:
        """Title of the cell in progress output."""
        seed = "" if self.seed == 0 else f" · seed {self.seed}"
        return f"{self.model} · {self.data} · {self.protocol} · {self.method}{seed}"


@dataclass(frozen=True)
class Published:
    """Published figures of a paper, shown as rows of a table for comparison.

    Args:
        model: Model of the table that shows them.
        data: Data of that table.
        protocol: Protocol of that table.
        label: Label in the table, such as the model of the paper.
        source: Reference of the figures.
        conditions: Differences from this benchmark: model, data, measure.
        values: Figures by method and column; shares in per cent, as in the paper.
        after: Number of edits; ``None``: at the end.
    """

    model: str
    data: str
    protocol: str
    label: str
    source: str
    conditions: str
    values: Mapping[str, Mapping[str, float]]
    after: int | None = None


@dataclass(frozen=True)
class ColumnGroup:
    """Columns of one table, and the protocols and data sets that get this table.

    Args:
        columns: Metric names as in ``docs/metrics.md``, or times.
        title: Suffix of the table's title; may be empty.
        protocols: Protocols that get this table; empty: all.
        data: Data sets that get this table; empty: all.
    """

    columns: tuple[str, ...]
    title: str = ""
    protocols: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def fits(self, data: str, protocol: str) -> bool:
        """Return whether cells of this data set and protocol get the table."""
        return (not self.protocols or protocol in self.protocols) and (
            not self.data or data in self.data
        )


@dataclass(frozen=True)
class Grid:
    """A benchmark grid: cells, models, columns, published figures and Trainer options.

    Args:
        path: Its YAML file.
        title: Title of its tables.
        note: Note for readers of the tables.
        cells: Every combination, in execution order.
        models: Options of each language model.
        columns: Groups of columns, one table each; empty: the default columns.
        curves: Metrics that also get a table over the number of edits.
        published: Published figures for comparison.
        trainer: Options of the Lightning Trainer.
        summary: Columns of the summary, pairs of protocol and metric or time; it is one table for
            each model and data set.
    """

    path: Path
    title: str
    note: str
    cells: tuple[Cell, ...]
    models: Mapping[str, Mapping[str, Any]]
    columns: tuple[ColumnGroup, ...]
    curves: tuple[str, ...]
    published: tuple[Published, ...]
    trainer: Mapping[str, Any]
    summary: tuple[tuple[str, str], ...] = ()


def shard(cells: Sequence[Cell], number: int, of: int) -> list[Cell]:
    """Select one shard of the cells: every ``of``-th, starting at ``number`` (1 … ``of``).

    Raises:
        ConfigError: If ``number`` is not between 1 and ``of``.
    """
    if not 1 <= number <= of:
        raise ConfigError(f"there is no shard {number}/{of}; give 1/{of} to {of}/{of}")
    return list(cells[number - 1 :: of])
