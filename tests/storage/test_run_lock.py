"""One writer a run: a second one is refused before it changes anything; a kill frees the run."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_edit.exceptions import LedgerWriteError, RunLockedError
from lightning_edit.storage.run_lock import LOCK, require_unlocked, run_lock

_HOLD = """
import sys, time
from pathlib import Path
from lightning_edit.storage.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that writes the folder."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    who = f"process {holder.pid} on '{socket.gethostname()}'; nothing was changed"
    for _ in range(2):  # a refused try does not rub out who holds it
        with pytest.raises(RunLockedError, match=who), run_lock(tmp_path):
            pytest.fail("two hold one lock")
        with pytest.raises(RunLockedError, match=who):
            require_unlocked(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    require_unlocked(tmp_path)
    with run_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert (tmp_path / LOCK).read_bytes() == b""


def test_one_process_does_not_write_twice(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(RunLockedError), run_lock(tmp_path):
        pytest.fail("two hold one lock")


def test_a_failure_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        _ = 1 / 0
    require_unlocked(tmp_path)


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerWriteError, match="has no file locks"), run_lock(tmp_path):
        pytest.fail("no lock was taken")


@pytest.mark.parametrize("name", ["file/run", "a\0b"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerWriteError, match="Nothing was changed"), run_lock(tmp_path / name):
        pytest.fail("no lock was taken")
