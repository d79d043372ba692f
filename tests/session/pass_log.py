"""What a run computes, operator by operator, so that two runs can be compared on any processor.

Two passes of the same numbers in another layout give the same result on one processor and another
last bit on the next. The log has what decides that: operators in order, shapes, types, strides,
where memory begins within a cache line, and the values of index tensors.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_edit.callbacks.base import MeasurementCallback
from lightning_edit.editors.base import Editor
from lightning_edit.session.edit_session import EditSession
from lightning_edit.session.measurement_log import ScoreLog

#: Bytes of a cache line, and of the widest vector register: kernels treat what does not begin at
#: such a place on its own.
_LINE = 64
#: Index tensors of more bytes are told apart by shape alone.
_SMALL = 1 << 16


class PassLog(TorchDispatchMode):
    """Writes down every operator, under the commit or evaluation that it belongs to.

    What a solver does is left out: its factors are made anew or updated, as the edits in force say,
    with the same result. The deltas that come of it are compared by their bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, list[str]] = {}
        self.part: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.part is not None:
            names, written = _arguments(func)
            line = [str(func)]
            for name, value in (*zip(names, args, strict=False), *(kwargs or {}).items()):
                listed = value if isinstance(value, list | tuple) else (value,)
                # What is written into may be memory that was never set.
                read = name not in written
                line += [_describe(one, read) for one in listed if type(one) is torch.Tensor]
            self.parts.setdefault(self.part, []).append(" ".join(line))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, part: str | None) -> Iterator[None]:
        """Put what runs inside the block under a name."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before


@cache
def _arguments(func: Any) -> tuple[list[str], set[str]]:
    """Return the names of an operator's arguments, and which of them it writes into."""
    listed = func._schema.arguments
    written = {one.name for one in listed if one.alias_info and one.alias_info.is_write}
    return [one.name for one in listed], written


def _describe(tensor: torch.Tensor, read: bool) -> str:
    offset = tensor.storage_offset() * tensor.element_size() % _LINE
    own = f"{tuple(tensor.shape)}/{tensor.dtype}/{tensor.stride()}/{offset}"
    small = tensor.numel() * tensor.element_size() <= _SMALL
    if tensor.is_floating_point() or tensor.is_complex() or not small or not read:
        return own
    content = tensor.detach().contiguous().numpy().tobytes()
    return f"{own}/{zlib.crc32(content):08x}"


@contextmanager
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[PassLog]:
    """Log the runs inside the block, by commit and evaluation point."""
    log = PassLog()
    stage, work = Editor.stage, EditSession.training_step
    commit, evaluate = EditSession._commit, EditSession._evaluate

    @contextmanager
    def quiet(self: Editor, name: str) -> Iterator[None]:
        with stage(self, name), log.within(None if name == "solve" else log.part):
            yield

    def step(self: EditSession, batch: list[Any], batch_idx: int) -> None:
        with log.within(f"batch {batch_idx}: search"):
            work(self, batch, batch_idx)

    def committed(self: EditSession, delta: Any, requests: Any) -> None:
        with log.within(f"commit of {requests[0].id}"):
            commit(self, delta, requests)

    def evaluated(self: EditSession, after: int, requests: Any) -> None:
        with log.within(f"evaluation after {after}, to {requests[-1].id}"):
            evaluate(self, after, requests)

    def show(self: MeasurementCallback, *args: Any) -> None:
        # Lightning's own bookkeeping, which begins anew with a process.
        with log.within(None):
            shown(self, *args)

    def point(self: ScoreLog, *args: Any) -> None:
        with log.within(None):
            told(self, *args)

    shown, told = MeasurementCallback.show, ScoreLog.point
    with monkeypatch.context() as patch, log:
        patch.setattr(MeasurementCallback, "show", show)
        patch.setattr(ScoreLog, "point", point)
        patch.setattr(Editor, "stage", quiet)
        patch.setattr(EditSession, "training_step", step)
        patch.setattr(EditSession, "_commit", committed)
        patch.setattr(EditSession, "_evaluate", evaluated)
        yield log
