"""Atomic file writes: a file is complete or absent, even if the process is killed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_edit.exceptions import LedgerWriteError


def write_error(error: OSError, path: Path, state: str) -> LedgerWriteError:
    """Convert an ``OSError`` of a failed write (such as a full disk) to a ``LedgerWriteError``.

    Args:
        error: The error of the operating system.
        path: The file or folder.
        state: Sentence for the message on what is still intact.

    Returns:
        The error to raise.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "no space is left" if full else str(error.strerror or error)
    remedy = "free space" if full else "check the folder"
    return LedgerWriteError(
        f"could not write {path}: {reason}. {state} To go on: {remedy}, then resume the run."
    )


@contextmanager
def atomic_path(path: Path, several_writers: bool = False) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path that replaces ``path`` after the block.

    Args:
        path: The file; its folder must exist.
        several_writers: Whether other processes may write the same file at the same time. Each then
            uses its own temporary file, which a kill may leave behind; otherwise the next write
            reuses it.

    Yields:
        The temporary file to write; it is in the same folder.

    Raises:
        OSError: If the write fails; an existing file at ``path`` is untouched.
    """
    own = f".{os.getpid()}-" if several_writers else ""
    part = path.with_name(f"{own}{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of an earlier kill; what a link there points to stays
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | bytearray) -> None:
    """Write bytes to a file atomically: the file is complete or absent.

    Args:
        path: The file.
        data: Its content.

    Raises:
        OSError: If the write fails; an existing file is untouched.
    """
    with atomic_path(path) as part:
        part.write_bytes(data)
