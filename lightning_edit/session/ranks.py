"""Editing in several processes, started by the Trainer's strategy; each holds the whole model.

Lightning starts the processes when a loop begins, which would be too late: the run folder, its lock
and the stream of edits are made before. Here they are started first.
"""

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.distributed.ranks import Ranks, lost
from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ConfigError, LightningEditError, RankLostError

_Result = TypeVar("_Result")

_LOG = logging.getLogger("lightning_edit")

#: Seconds that the other processes of this machine have to end by themselves, after an error.
_GRACE = 10.0


def on_every_rank(
    trainer: pl.Trainer, timeout: float, work: Callable[[OneProcess], _Result]
) -> _Result:
    """Run a stream of edits in all processes of a trainer; start those that are not there yet.

    Args:
        trainer: The trainer; it has one process, or those of ``strategy="ddp"``.
        timeout: Seconds that a process waits for the others, before the run ends.
        work: What every process does.

    Returns:
        This process's result.

    Raises:
        ConfigError: If the processes do not hold a replica of the model each, or would not start
            from the script.
        RankLostError: If a process has ended or hangs.
    """
    if trainer.world_size == 1:
        return work(ALONE)
    strategy = trainer.strategy
    _require_replicas(strategy)
    if not timeout > 0:
        raise ConfigError(f"rank_timeout counts seconds, expected more than 0, got {timeout!r}")

    def run() -> _Result:
        strategy.setup_environment()  # the default group; the loop finds it made
        ranks = Ranks(timeout)
        with _replicas(strategy):
            try:
                found = work(ranks)
                ranks.wait()
            except RuntimeError as error:
                # Lightning's own barriers, in a loop or at a checkpoint.
                if isinstance(error, LightningEditError) or "gloo" not in str(error):
                    raise
                raise lost(error, ranks.rank, ranks.size, timeout) from error
        return found

    launcher: Any = strategy.launcher
    if launcher is None:  # started from outside
        return run()
    try:
        found: _Result = launcher.launch(run, trainer=trainer)
    except RankLostError:
        # One that hangs would go on for ever.
        _end(getattr(launcher, "procs", []))
        raise
    return found


@contextmanager
def shared_work(editor: Editor, ranks: OneProcess) -> Iterator[None]:
    """Let an editor share its work with other processes; say what all would say only once.

    Args:
        editor: The editor.
        ranks: The processes.
    """
    level = _LOG.level
    editor.work_with(ranks)
    if not ranks.is_first:
        _LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOG.setLevel(level)
        editor.work_with(ALONE)


def _require_replicas(strategy: Any) -> None:
    if not isinstance(strategy, DDPStrategy):
        raise ConfigError(
            f"edit runs in one process or in several with a replica of the model each, but the "
            f"Trainer has the strategy {type(strategy).__name__}; use strategy='ddp' "
            "(--trainer.strategy ddp)"
        )
    if strategy._start_method != "popen":
        raise ConfigError(
            "edit needs processes that run the script, but the Trainer's strategy starts them by "
            f"{strategy._start_method}, so the edits would be lost with them; use strategy='ddp' "
            "(--trainer.strategy ddp), or torchrun"
        )


@contextmanager
def _replicas(strategy: Any) -> Iterator[None]:
    """Keep Lightning from wrapping the session: nothing is trained, so no gradient is reduced."""
    strategy.configure_ddp = lambda: None
    try:
        yield
    finally:
        del strategy.configure_ddp


def _end(processes: list["subprocess.Popen[Any]"]) -> None:
    """End child processes that do not end by themselves."""
    until = time.monotonic() + _GRACE
    while time.monotonic() < until and any(one.poll() is None for one in processes):
        time.sleep(0.1)
    for one in processes:
        one.kill()  # does nothing to one that has ended
