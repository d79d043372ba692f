"""Processes for tests of several, forked from two interpreters that have imported everything.

A fresh interpreter spends six CPU seconds on importing torch, transformers and Lightning, a fork
none. Ranks have the environment that Lightning's own launcher gives the processes it starts, so a
``Trainer`` in them starts none. Even ranks come from one interpreter and odd ranks from another,
with other seeds of ``hash``: ranks that walk a set of strings in its order differ, as in life.

``python -m tests.forks`` is such an interpreter: a request per line on its standard input, and on
its standard output the processes' ids, then how each ended.
"""

import base64
import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Begun:
    """Processes that run: their ids, and the files that take what they say."""

    interpreters: Sequence[subprocess.Popen[str]]
    pids: Sequence[int]
    said: Sequence[Path]

    def kill(self) -> None:
        """Kill all of them at once."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, timeout: float = 300.0) -> list[int]:
        """Return how each process ended, by rank: 0, its status, or minus the signal.

        Args:
            timeout: Seconds until those that still run are killed.
        """
        parts: list[list[int]] = []
        for interpreter in self.interpreters:
            assert interpreter.stdout is not None
            if not select.select([interpreter.stdout], [], [], timeout)[0]:
                self.kill()
            parts.append(json.loads(interpreter.stdout.readline()))
        return [parts[rank % len(parts)][rank // len(parts)] for rank in range(len(self.pids))]

    def told(self) -> str:
        """Return what all of them have written to standard output and standard error."""
        return "\n".join(path.read_text(encoding="utf-8") for path in self.said)


class Forks:
    """Starts processes as forks; what they say is kept in files of a folder.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.interpreters: list[subprocess.Popen[str]] = []

    def begin(self, call: Callable[..., object], *arguments: Any, ranks: int = 1) -> Begun:
        """Start a function in several processes.

        Args:
            call: A function of a module, which is imported by its name.
            arguments: Its arguments, which can be pickled.
            ranks: Number of processes.
        """
        wanted = min(ranks, 2)
        while len(self.interpreters) < wanted:
            self.interpreters.append(_interpreter(len(self.interpreters) + 1))
        self.count += 1
        said = [self.folder / f"{self.count}-{rank}.txt" for rank in range(ranks)]
        sent = base64.b64encode(pickle.dumps((call, arguments))).decode()
        request = {"call": sent, "ranks": ranks, "port": _free_port()}
        interpreters, parts = self.interpreters[:wanted], []
        for place, interpreter in enumerate(interpreters):
            mine = {str(rank): str(said[rank]) for rank in range(place, ranks, wanted)}
            assert interpreter.stdin is not None
            print(json.dumps(request | {"said": mine}), file=interpreter.stdin)
            interpreter.stdin.flush()
        for interpreter in interpreters:
            assert interpreter.stdout is not None
            parts.append(json.loads(interpreter.stdout.readline()))
        pids = [parts[rank % wanted][rank // wanted] for rank in range(ranks)]
        return Begun(interpreters, pids, said)

    def run(
        self,
        call: Callable[..., object],
        *arguments: Any,
        ranks: int = 1,
        timeout: float = 300.0,
    ) -> None:
        """Run a function in several processes, all of which must end well; see :meth:`begin`."""
        begun = self.begin(call, *arguments, ranks=ranks)
        statuses = begun.wait(timeout)
        assert statuses == [0] * ranks, f"{statuses}\n{begun.told()[-4000:]}"

    def close(self) -> None:
        """End the interpreters."""
        for interpreter in self.interpreters:
            interpreter.communicate(timeout=60)


def _interpreter(seed: int) -> "subprocess.Popen[str]":
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forks"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | own | {"TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _become(rank: int, request: dict[str, Any]) -> None:
    """Be one rank, in a fork: its own output, environment and random numbers."""
    import random

    import numpy as np
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    with Path(request["said"][str(rank)]).open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    if request["ranks"] > 1:
        os.environ |= {
            "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(request["ranks"]),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]),
        }  # fmt: skip
        rank_zero_only.rank = rank
    # As in interpreters of their own: theirs for Python, PyTorch's own first state.
    random.seed()
    np.random.seed()
    torch.manual_seed(torch.initial_seed())


def _fork(rank: int, request: dict[str, Any], work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _become(rank, request)
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # a child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    """Answer requests until standard input ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # nothing else may come between the answers
        warnings.simplefilter("ignore")
        import tests.callbacks.foreign
        import tests.toy  # noqa: F401  # what most of them need

        for line in sys.stdin:
            request = json.loads(line)
            # Its module is imported here, so that later forks have it as well.
            call, arguments = pickle.loads(base64.b64decode(request["call"]))  # noqa: S301  # our own
            work = partial(call, *arguments)
            pids = [_fork(int(rank), request, work) for rank in request["said"]]
            print(json.dumps(pids), file=answers, flush=True)
            ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            print(json.dumps(ended), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
