"""JSON Lines (JSONL): one reader, one writer, and an append-only file that survives a kill."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import DataError, LedgerError
from lightning_edit.storage.atomic import write_atomic, write_error

#: What a write that the disk refused has left alone, for the error.
UNCHANGED = "The model and every earlier edit are unchanged."


def to_line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_synced(path: Path, size: int, data: bytes) -> None:
    """Add bytes to a file and wait until they are on disk.

    Args:
        path: The file; made where there is none. Its folder exists.
        size: Bytes to keep: what lies behind them is of a write that a kill has cut.
        data: What is added.

    Raises:
        OSError: If the disk refuses; the file may then hold a part of the data.
    """
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def complete_lines(content: bytes) -> list[bytes]:
    """Return the lines that have an end, without it; a last one that a kill has cut is dropped.

    Only the line feed ends a line: JSON strings may hold U+2028 and other line ends of Unicode, at
    which ``str.splitlines`` would cut a record in two.
    """
    return content.split(b"\n")[:-1]


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
        data = "".join(to_line(row) for row in rows).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_synced(self.path, self.size, data)
        except OSError as error:
            raise write_error(error, self.path, UNCHANGED) from error
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
        if self.size:
            yield from (row for _, row in iterate_rows(self.path, self.size))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; the file appears whole or not at all.

    Args:
        path: File to write; its folder is made.
        rows: Plain containers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        DataError: If a line is not a JSON object.
    """
    return [row for _, row in iterate_rows(path)]


def iterate_rows(path: Path, size: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read one JSON object a line, one at a time: files of many evaluations may exceed memory.

    Only the line feed ends a line, see :func:`complete_lines`.

    Args:
        path: File to read.
        size: Bytes to read; ``None``: all.

    Yields:
        Number of the line, from 1, and its object.

    Raises:
        DataError: If a line is not a JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _read_row(path, number, line)
            if size is not None and file.tell() >= size:
                return


def _read_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(
            f"{path}, line {number}: not JSON ({error}); write the file anew"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: expected a JSON object, got {type(row).__name__}; "
            "write the file anew"
        )
    return row
