"""Stages and progress of an edit, and the processes that share its work."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_edit.distributed.one_process import ALONE, OneProcess


class Stages(nn.Module, ABC):
    """Stage timings and progress of an editor and of those that it wraps."""

    ranks: OneProcess = ALONE
    """The processes that share the work of edits, see :meth:`work_with`."""

    def __init__(self) -> None:
        super().__init__()
        self._stages: dict[str, float] = {}
        self._nested_seconds = 0.0
        self._progress_listener: Callable[[int, int], None] | None = None

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The bound language model."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a ``with`` block as a stage of editing.

        The time of a nested stage is not counted in the outer one.

        Args:
            name: ``search`` (target vectors, gradient steps), ``keys`` (reading the edited layers'
                inputs) or ``solve``.
        """
        self._synchronize()
        outer_seconds, self._nested_seconds = self._nested_seconds, 0.0
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            seconds = time.perf_counter() - begin
            self._stages[name] = self._stages.get(name, 0.0) + seconds - self._nested_seconds
            self._nested_seconds = outer_seconds + seconds

    def progress(self, done: int, total: int) -> None:
        """Report the progress of a search or a training inside one edit, to whoever listens.

        Args:
            done: Optimiser steps so far.
            total: Most optimiser steps that there can be; early stopping may end before.
        """
        if self._progress_listener is not None:
            self._progress_listener(done, total)

    def report_progress_to(self, listener: Callable[[int, int], None] | None) -> None:
        """Send :meth:`progress` to a listener, that of nested editors included.

        Args:
            listener: Called with steps done and steps in all; ``None``: nobody listens.
        """
        for module in self.modules():
            if isinstance(module, Stages):
                module._progress_listener = listener

    def work_with(self, ranks: OneProcess) -> None:
        """Share the work of edits with other processes, that of nested editors included.

        Args:
            ranks: The processes; all of them edit the same requests on the same model.
        """
        for module in self.modules():
            if isinstance(module, Stages):
                module.ranks = ranks

    def _synchronize(self) -> None:
        device = self.language_model.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def take_stages(self) -> dict[str, float]:
        """Return and reset the stage timings in seconds, nested editors included."""
        taken: dict[str, float] = {}
        for module in self.modules():
            if isinstance(module, Stages):
                for name, seconds in module._stages.items():
                    taken[name] = taken.get(name, 0.0) + seconds
                module._stages = {}
        return taken
