"""The folder of a run: where everything is, and how each file survives a kill.

``config.yaml`` (what was asked), ``results.json`` (scores), ``cases.jsonl`` (one line a probe and
evaluation point), ``baseline.jsonl`` (the same probes on the pristine model), ``passes.json`` (how
texts are laid out in forward passes), ``measures.jsonl`` (what callbacks measured), ``ledger/``
(the edits), ``checkpoints/`` (position and history).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.storage.atomic import write_atomic, write_error
from lightning_edit.storage.jsonl import UNCHANGED, to_line


class RunFolder:
    """Paths of one run.

    Args:
        path: The folder; made when first written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def ledger(self) -> Path:
        """Folder of the journal and the deltas."""
        return self.path / "ledger"

    @property
    def checkpoints(self) -> Path:
        """Folder of Lightning checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def results(self) -> Path:
        """Scores of the run."""
        return self.path / "results.json"

    @property
    def cases(self) -> Path:
        """One line a probe and evaluation point."""
        return self.path / "cases.jsonl"

    @property
    def measures(self) -> Path:
        """What callbacks measured, one line a callback and moment."""
        return self.path / "measures.jsonl"

    @property
    def baseline(self) -> Path:
        """The probes on the pristine model."""
        return self.path / "baseline.jsonl"

    @property
    def passes(self) -> Path:
        """How texts are laid out in forward passes, chosen once before the baseline."""
        return self.path / "passes.json"

    @property
    def has_run(self) -> bool:
        """Whether edits were written here already."""
        return (self.ledger / "journal.jsonl").exists()

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all.

        Args:
            path: File inside the folder.
            value: Plain containers.

        Raises:
            LedgerWriteError: If the disk refuses.
        """
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self._write(path, text.encode())

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSONL file whole or not at all.

        Args:
            path: File inside the folder.
            rows: One mapping a line.

        Raises:
            LedgerWriteError: If the disk refuses.
        """
        self._write(path, "".join(to_line(row) for row in rows).encode())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise write_error(error, path, UNCHANGED) from error
