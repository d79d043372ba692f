"""Atomic file writes: a file is whole or not there, whatever kills the process."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_edit.exceptions import LedgerWriteError


def write_error(error: OSError, path: Path, state: str) -> LedgerWriteError:
    """Explain a failed write.

    Args:
        error: What the operating system said.
        path: The file or folder concerned.
        state: What is still intact, for the last clause of the message.

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
def replacing(path: Path, several_writers: bool = False) -> Iterator[Path]:
    """Give a file beside ``path`` to write to, which takes its place when the block has ended.

    Args:
        path: The file; its folder exists.
        several_writers: Whether other processes may write the same file meanwhile. Each then has a
            file of its own, and a kill may leave it behind; otherwise the next write reuses it.

    Yields:
        The file to write.

    Raises:
        OSError: If the disk refuses; a file that stood at ``path`` is untouched.
    """
    own = f".{os.getpid()}-" if several_writers else ""
    part = path.with_name(f"{own}{path.name}.part")
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that it is either whole or not there.

    Args:
        path: The file.
        data: Its content.

    Raises:
        OSError: If the disk refuses; a file that stood there is untouched.
    """
    with replacing(path) as part:
        part.write_bytes(data)
