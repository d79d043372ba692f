"""The folder of a run: where everything is, and how each file survives a kill.

``config.yaml`` (what was asked), ``results.json`` (scores), ``cases.jsonl`` (one line a probe and
evaluation point), ``baseline.jsonl`` (the same probes on the pristine model), ``passes.json`` (how
texts are laid out in forward passes), ``measures.jsonl`` (what callbacks measured), ``ledger/``
(the edits), ``checkpoints/`` (position and history).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.edits.journal import write_atomic, write_error
from lightning_edit.exceptions import LedgerError

_SAFE = "The model and every earlier edit are unchanged."


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
        self._write(path, "".join(_line(row) for row in rows).encode())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise write_error(error, path, _SAFE) from error


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class RowFile:
    """A JSONL file that is appended to, and cut back to a remembered length on resume.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines and wait until they are on disk.

        Args:
            rows: One mapping a line.

        Raises:
            LedgerWriteError: If the disk refuses.
        """
        data = "".join(_line(row) for row in rows).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, _SAFE) from error
        self.size += len(data)

    def cut(self, size: int) -> None:
        """Forget what was appended after the file had ``size`` bytes.

        Args:
            size: Bytes to keep.

        Raises:
            LedgerError: If the file is shorter.
        """
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            raise LedgerError(
                f"{self.path} has {found} bytes but the checkpoint was taken at {size}; "
                "restore the run folder as a whole, or start a new run"
            )
        if self.path.exists():
            os.truncate(self.path, size)
        self.size = size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.size == 0:
            return
        with self.path.open("rb") as file:
            for line in file.read(self.size).splitlines():
                yield json.loads(line)
