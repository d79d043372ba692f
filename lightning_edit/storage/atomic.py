"""Atomic file writes: a file is whole or not there, whatever kills the process."""

import errno
import os
from contextlib import suppress
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


def write_atomic(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that it is either whole or not there.

    Args:
        path: The file.
        data: Its content.

    Raises:
        OSError: If the disk refuses; a file that stood there is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
