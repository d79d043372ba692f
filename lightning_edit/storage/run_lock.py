"""Lock of a run folder: one process writes a run. Nothing here imports torch.

The lock is one of the operating system (``flock``) on the file ``writer.lock``: it ends with its
process, however that ends, and a left-over file locks nothing. The file says who holds it.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_edit.exceptions import LedgerWriteError, RunLockedError

#: Name of the file inside a run folder.
LOCK = "writer.lock"

#: Errors of a file system that has no locks, such as some network mounts.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; created if missing.

    Args:
        folder: The run folder.

    Raises:
        RunLockedError: If another process, or another run in this one, writes the folder. Nothing
            was changed.
        LedgerWriteError: If the folder cannot be written, or its disk has no locks.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise LedgerWriteError(
            f"could not write {path}: {reason}. Nothing was changed. Give a folder that you may "
            "write, on a disk that is not mounted read-only"
        ) from error
    try:
        _acquire(descriptor, folder)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def require_unlocked(folder: Path) -> None:
    """Check early, before a model is loaded, that no other process writes a run.

    Args:
        folder: The run folder.

    Raises:
        RunLockedError: If one does.
    """
    path = folder / LOCK
    if not path.is_file():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _acquire(descriptor, folder)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunLockedError(
            f"{folder} is being written by {_holder(descriptor)}; nothing was changed. Wait until "
            "it has ended (or end it), or use another run folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise LedgerWriteError(
            f"could not lock {folder}: its disk has no file locks ({error.strerror}). Nothing was "
            "changed. Use a folder on a local disk, or a network mount with locks"
        ) from error


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['pid'])} on {str(found['host'])[:255]!r}"
    except (ValueError, KeyError, TypeError):  # its holder has not written it yet
        return "another process"
