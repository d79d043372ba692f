"""Where the time of a computation goes, by stage, in wall and processor seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Adds up the time spent in named stages; stages must not be nested."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.last: dict[str, Any] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the ``with`` block to a stage; it may be entered again and again."""
        # Processor time is that of all threads: where it exceeds wall time, several cores worked.
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu

    @contextmanager
    def watching(self, owner: Any, name: str, stage: str) -> Iterator[None]:
        """Count calls of ``owner.name`` to a stage, and keep what the last one returned."""
        original = getattr(owner, name)
        own = name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                self.last[stage] = original(*args, **kwargs)
            return self.last[stage]

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def per(self, count: int) -> dict[str, dict[str, float]]:
        """Return wall and processor seconds of every stage, divided by a number of edits."""
        return {
            clock: {name: round(seconds / count, 6) for name, seconds in times.items()}
            for clock, times in (("wall", self.wall), ("cpu", self.cpu))
        }
