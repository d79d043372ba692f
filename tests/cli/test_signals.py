"""A signal ends a verb with its own exit status, without a traceback, and the run can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_edit.cli import main as module
from lightning_edit.cli.main import main
from lightning_edit.edits.journal import Journal
from lightning_edit.storage.run_lock import LOCK, require_unlocked

BOTH = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
_HARMLESS = {**os.environ, "PYTHONUNBUFFERED": "1"}


def verb(work: Callable[[], int]) -> Callable[[str], object]:
    return lambda name: lambda rest: work()


@BOTH
def test_status_of_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def work() -> int:
        signal.raise_signal(number)
        raise AssertionError("the signal did nothing")

    def tidy() -> int:
        try:
            return work()
        except KeyboardInterrupt:
            return 1  # as verbs do that say how to go on

    def exits() -> int:
        try:
            return work()
        except KeyboardInterrupt:
            raise SystemExit(1) from None  # as Lightning does

    for one in (work, tidy, exits):
        monkeypatch.setattr(module, "_load_verb", verb(one))
        assert main(["doctor"]) == status
    assert capsys.readouterr().err == "Interrupted.\n"
    assert {one: signal.getsignal(one) for one in before} == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(module, "_load_verb", verb(work))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["doctor"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


_IMPORTING = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "slow_import.py").write_text(
    "import time\\nprint('importing', flush=True)\\n"
    "try:\\n    time.sleep(60)\\nexcept BaseException:\\n    raise ImportError('broken off')\\n"
)
sys.path.insert(0, str(folder))
import lightning_edit.cli.main as module
def load(name):
    import slow_import
module._load_verb = load
sys.exit(module.main(["doctor"]))
"""


@BOTH
def test_a_signal_while_importing(tmp_path: Path, number: int, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _IMPORTING, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_HARMLESS,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert error == "Interrupted while starting; nothing was changed.\n"


def test_resume_says_what_to_do_without_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).touch()
    assert main(["resume", str(tmp_path)]) == 2
    assert "start it again with the same `lightning-edit edit` command" in capsys.readouterr().err
    Journal(tmp_path / "ledger").open(model="abc")
    assert main(["resume", str(tmp_path)]) == 2
    assert f"--run {tmp_path} --ckpt_path last" in capsys.readouterr().err


def _edit(run: Path) -> list[str]:
    return [
        "edit", "--model", "FTL", "--data", "AtlasDataModule", "--data.limit", "16", "--modes",
        "[tf]", "--run", str(run), "--checkpoint_every", "1", "--trainer.enable_progress_bar",
        "false", "--trainer.accelerator", "cpu",
    ]  # fmt: skip


@pytest.mark.slow
@BOTH
def test_a_run_that_a_signal_ended_goes_on(tmp_path: Path, number: int, status: int) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lightning_edit"]
    process = subprocess.Popen(
        [*command, *_edit(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=_HARMLESS,
    )  # fmt: skip
    checkpoint = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in error
    assert f"lightning-edit resume {run}" in error
    require_unlocked(run)
    assert not (run / "results.json").exists()
    assert main(["resume", str(run)]) == 0
    assert len(Journal(run / "ledger").active()) == 16
