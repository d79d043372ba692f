"""Run folder: paths of a run's files, and atomic writes into it.

``config.yaml`` (options), ``results.json`` (scores), ``cases.jsonl`` (one line per probe and
evaluation point), ``baseline.jsonl`` (the same probes on the pristine model), ``passes.json``
(layout of texts in forward passes), ``measures.jsonl`` (measurements of callbacks),
``attribution.json`` (which edits moved facts), ``ledger/`` (the edits), ``editor/`` (an editor that
acts at run time), ``checkpoints/`` (position in the stream and history).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.jsonl import UNCHANGED, to_line


class RunFolder:
    """Paths of one run's files, with atomic JSON and JSONL writers.

    Args:
        path: The folder; created at the first write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def ledger(self) -> Path:
        """Folder of the ledger: the journal and the delta files."""
        return self.path / "ledger"

    @property
    def editor(self) -> Path:
        """Folder of an editor that acts at run time: its arguments and its learned parts."""
        return self.path / "editor"

    @property
    def checkpoints(self) -> Path:
        """Folder of Lightning checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """Path of the newest checkpoint, ``last.ckpt``."""
        return self.checkpoints / "last.ckpt"

    @property
    def results(self) -> Path:
        """Path of ``results.json``, the scores of the run."""
        return self.path / "results.json"

    @property
    def cases(self) -> Path:
        """Path of ``cases.jsonl``, one line per probe and evaluation point."""
        return self.path / "cases.jsonl"

    @property
    def measures(self) -> Path:
        """Path of ``measures.jsonl``, one line per callback and evaluation."""
        return self.path / "measures.jsonl"

    @property
    def baseline(self) -> Path:
        """Path of ``baseline.jsonl``, the probes on the pristine model."""
        return self.path / "baseline.jsonl"

    @property
    def passes(self) -> Path:
        """Path of ``passes.json``, the layout of forward passes, chosen before the baseline."""
        return self.path / "passes.json"

    @property
    def attribution(self) -> Path:
        """Path of ``attribution.json``: which edits moved facts that should have stayed."""
        return self.path / "attribution.json"

    @property
    def has_run(self) -> bool:
        """Whether the folder already has a journal of edits."""
        return (self.ledger / "journal.jsonl").exists()

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically.

        Args:
            path: File inside the folder.
            value: Plain containers.

        Raises:
            LedgerWriteError: If the write fails.
        """
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self._write(path, text.encode())

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSONL file atomically.

        Args:
            path: File inside the folder.
            rows: One mapping per line.

        Raises:
            LedgerWriteError: If the write fails.
        """
        self._write(path, "".join(to_line(row) for row in rows).encode())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise write_error(error, path, UNCHANGED) from error
