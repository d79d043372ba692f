"""JSON Lines (JSONL): reader, atomic writer, and an append-only file that survives a kill."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import DataError, LedgerError
from lightning_edit.storage.atomic import atomic_path, write_atomic, write_error

#: Sentence for the error message of a failed write, on what is still intact.
UNCHANGED = "The model and every earlier edit are unchanged."

#: Bytes that are read at once for a hash.
_PART = 1 << 20


def to_line(row: Mapping[str, Any]) -> str:
    """Serialise a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_synced(path: Path, size: int, data: bytes) -> None:
    """Append bytes to a file and fsync it.

    Args:
        path: The file; created if missing. Its folder must exist.
        size: Bytes to keep; bytes after them are from an interrupted write and are dropped.
        data: Bytes to append.

    Raises:
        OSError: If the write fails; the file may then contain a part of the data.
    """
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def keep_first(path: Path, size: int) -> None:
    """Cut a file to its first bytes, atomically: it is the old one or the cut one.

    Args:
        path: The file.
        size: Bytes to keep.

    Raises:
        OSError: If the write fails; the file is untouched.
    """
    with atomic_path(path) as part, path.open("rb") as old, part.open("wb") as new:
        while size and (piece := old.read(min(size, _PART))):
            new.write(piece)
            size -= len(piece)


def complete_lines(content: bytes) -> list[bytes]:
    """Split JSONL bytes into complete lines; drop an incomplete last line of an interrupted write.

    Only the line feed ends a line: JSON strings may contain U+2028 and other Unicode line breaks,
    at which ``str.splitlines`` would split a record in two.
    """
    return content.split(b"\n")[:-1]


def at_once(write: Callable[[], None]) -> None:
    """Write a file: what a process does that is the only one of its run.

    Args:
        write: Writes the file.
    """
    write()


class RowFile:
    """Append-only JSONL file that is truncated to the checkpoint's length on resume.

    Args:
        path: The file.
        once: Calls what writes the file, where several processes of a run have the same rows: on
            one of them, and the others wait.
    """

    def __init__(self, path: Path, once: Callable[[Callable[[], None]], None] = at_once) -> None:
        self.path = path
        self._once = once
        self.size = 0
        self._hash = hashlib.sha256()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as lines and fsync the file.

        Args:
            rows: One mapping per line.

        Raises:
            LedgerWriteError: If the write fails.
        """
        data = "".join(to_line(row) for row in rows).encode()
        self._once(lambda: self._append(data))
        self.size += len(data)
        self._hash.update(data)

    def _append(self, data: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_synced(self.path, self.size, data)
        except OSError as error:
            raise write_error(error, self.path, UNCHANGED) from error

    def digest(self) -> str:
        """Return the SHA-256 of the rows so far, for a checkpoint."""
        return self._hash.hexdigest()

    def check(self, size: int, digest: str | None = None) -> None:
        """Check that the file can be truncated to a checkpoint's rows; nothing is written.

        Args:
            size: Bytes that the checkpoint recorded.
            digest: Their SHA-256; ``None`` in checkpoints of older versions.

        Raises:
            LedgerError: If the file is shorter than that, or its rows were changed.
        """
        found = self.path.stat().st_size if self.path.is_file() else 0
        if (
            found >= size
            and digest is not None
            and _prefix_hash(self.path, size).hexdigest() != digest
        ):
            raise LedgerError(
                f"{self.path} was changed after the checkpoint was taken (SHA-256 of its first "
                f"{size} bytes differs); restore the run folder as a whole, or start a new run"
            )
        if found < size:
            raise LedgerError(
                f"{self.path} has {found} bytes but the checkpoint was taken at {size}; "
                "restore the run folder as a whole, or start a new run"
            )
        if digest is not None and _prefix_hash(self.path, size).hexdigest() != digest:
            raise LedgerError(
                f"{self.path} was changed after the checkpoint was taken (SHA-256 of its first "
                f"{size} bytes differs); restore the run folder as a whole, or start a new run"
            )

    def cut(self, size: int) -> None:
        """Truncate the file to ``size`` bytes.

        Args:
            size: Bytes to keep.

        Raises:
            LedgerError: If the file is shorter than that.
        """
        self.check(size)
        self._once(lambda: self._truncate(size))
        self.size = size
        self._hash = _prefix_hash(self.path, size)

    def _truncate(self, size: int) -> None:
        if self.path.exists():
            os.truncate(self.path, size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.size:
            yield from (row for _, row in iterate_rows(self.path, self.size))


def _prefix_hash(path: Path, size: int) -> Any:
    """Start the SHA-256 of the first bytes of a file; a missing file is empty."""
    found, left = hashlib.sha256(), size
    if size:
        with path.open("rb") as file:
            while left and (part := file.read(min(left, _PART))):
                found.update(part)
                left -= len(part)
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a JSONL file atomically, one JSON object per line.

    Args:
        path: File to write; its folder is created.
        rows: Plain containers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a JSONL file into a list.

    Raises:
        DataError: If a line is not a JSON object.
    """
    return [row for _, row in iterate_rows(path)]


def iterate_rows(path: Path, size: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over the rows of a JSONL file; files of many evaluations may exceed memory.

    Only the line feed ends a line, see :func:`complete_lines`.

    Args:
        path: File to read.
        size: Bytes to read; ``None``: all.

    Yields:
        Line number, from 1, and the object of the line.

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
