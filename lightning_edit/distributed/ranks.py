"""The processes (ranks) of a run that all hold the same model, and what they do together.

Every rank runs the same program on the same data. Expensive work is dealt out by whole items
(forward passes, chunks of requests) whose members and shapes do not depend on the number of ranks,
so results have the bits of one process at an equal number of threads. Everything else is repeated
by all, and compared.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lightning_edit.distributed.leaving import leave_at_exit
from lightning_edit.distributed.one_process import OneProcess
from lightning_edit.exceptions import RankLostError, RanksDifferError

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

_GO_ON = (
    "Every committed edit is on disk; when all processes have ended, resume the run, with any "
    "number of them"
)


class Ranks(OneProcess):
    """All processes of ``torch.distributed``, with a gloo group of their own on the CPU.

    Make it in every process, after the default group was made.

    Args:
        timeout: Seconds that a rank waits for the others, before the run ends.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        alone = [dist.new_group([rank], backend="gloo") for rank in range(self.size)]
        self._alone = alone[self.rank]
        leave_at_exit(self)

    def release(self) -> None:
        """Let go of the process groups; nothing can be done together afterwards."""
        del self._group, self._alone

    def first(self, work: Callable[[], _Value]) -> _Value:
        """Do something on rank 0 alone; see :meth:`OneProcess.first`."""
        found, error = None, None
        if self.is_first:
            try:
                found = work()
            except Exception as raised:  # noqa: BLE001  # raised again, on every rank
                error = raised
        told = self._broadcast((found, None if error is None else _packed(error)))
        if error is not None:
            raise error
        if told[1] is not None:
            raise _unpacked(told[1], 0)
        return found if self.is_first else told[0]  # type: ignore[return-value]  # rank 0's type

    def same(self, value: _Value) -> _Value:
        """Return rank 0's value, on every rank."""
        told: _Value = self._broadcast(value)
        return value if self.is_first else told

    def deal(self, items: Iterable[_Item], work: Callable[[_Item], _Value]) -> list[_Value]:
        """Do the work of some items, each on one rank; see :meth:`OneProcess.deal`.

        Passes are mostly sorted by length, so every second round is dealt backwards: with 0, 1, 1,
        0 two ranks are done at about the same time, with 0, 1, 0, 1 rank 0 has the longer ones.
        """
        listed = list(items)
        if len(listed) < 2:
            # Sending the result of one item would take longer than repeating it.
            return [work(item) for item in listed]
        done: list[_Value] = []
        error: Exception | None = None
        owner = [self._owner(number) for number in range(len(listed))]
        mine = [number for number, rank in enumerate(owner) if rank == self.rank]
        try:
            done.extend(work(listed[number]) for number in mine)
        except Exception as raised:  # noqa: BLE001  # raised again, on every rank
            error = raised
        failed = None if error is None else (mine[len(done)], _packed(error))
        parts = self._gather((done if error is None else [], failed))
        failures = [(one[1], rank) for rank, one in enumerate(parts) if one[1] is not None]
        if failures:
            (_, packed), rank = min(failures, key=lambda pair: pair[0][0])
            if rank == self.rank and error is not None:
                raise error
            raise _unpacked(packed, rank)
        # A rank gets one item of every round, so its items count the rounds.
        return [parts[rank][0][number // self.size] for number, rank in enumerate(owner)]

    def _owner(self, number: int) -> int:
        """Return the rank that an item is dealt to."""
        way, place = divmod(number, self.size)
        return place if way % 2 == 0 else self.size - 1 - place

    def require_same(self, what: str, checksums: Mapping[str, str]) -> None:
        """Check that all ranks have computed the same; see :meth:`OneProcess.require_same`."""
        parts: list[Mapping[str, str]] = self._gather(dict(checksums))
        for rank, other in enumerate(parts):
            if other == parts[0]:
                continue
            names = sorted({*parts[0], *other})
            differs = [name for name in names if parts[0].get(name) != other.get(name)]
            raise RanksDifferError(
                f"{what}: rank {rank} has computed another {differs[0]} than rank 0 "
                f"(SHA-256 {other.get(differs[0], 'absent')[:12]}, expected "
                f"{parts[0].get(differs[0], 'absent')[:12]}"
                f"{f'; {len(differs)} parts differ' if len(differs) > 1 else ''}). Nothing of it "
                "was written. Give every process the same model, data and number of threads "
                "(OMP_NUM_THREADS) on machines of one kind; then resume the run"
            )

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self._gather(None)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Show this process as the only one to torch.distributed; see :meth:`OneProcess.apart`.

        The default group is a property of ``torch.distributed.group`` that can be set; there is no
        context manager for it. A process group given to each metric would not reach the metrics
        of callbacks that users bring, nor what Lightning itself reduces.
        """
        world = dist.group.WORLD
        dist.group.WORLD = self._alone
        try:
            yield
        finally:
            dist.group.WORLD = world

    def _broadcast(self, value: Any) -> Any:
        box = [_sent(value) if self.is_first else b""]
        self._together(lambda: dist.broadcast_object_list(box, src=0, group=self._group))
        return value if self.is_first else pickle.loads(box[0])  # noqa: S301  # our own processes'

    def _gather(self, value: Any) -> list[Any]:
        parts: list[Any] = [None] * self.size
        self._together(lambda: dist.all_gather_object(parts, _sent(value), group=self._group))
        return [pickle.loads(part) for part in parts]  # noqa: S301  # our own processes'

    def _together(self, call: Callable[[], None]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise lost(error, self.rank, self.size, self.timeout) from error


class _Sender(pickle.Pickler):
    """Sends what lies on an accelerator by way of the CPU, onto the receiver's own device."""

    def reducer_override(self, value: Any) -> Any:
        """Say how a value is rebuilt by who receives it; see the pickle module."""
        if isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta"):
            # Its index is another one in every process: "cuda" is the current one.
            return _received, (value.detach().cpu(), value.device.type)
        return NotImplemented


def _received(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    return tensor.to(kind)


def _sent(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Sender(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def lost(error: Exception, rank: int, size: int, timeout: float) -> RankLostError:
    """Return the error of a rank that waits for another in vain.

    Args:
        error: The error of torch.distributed.
        rank: Rank of this process.
        size: Number of processes.
        timeout: Seconds that it waits at most.
    """
    said = str(error).strip().split(". ")[0].splitlines() or [type(error).__name__]
    return RankLostError(
        f"rank {rank} of {size} lost another process of the run: it has ended, or was not heard of "
        f"for {timeout:g} seconds (rank_timeout); look for its own message. {_GO_ON} ({said[0]})"
    )


def _packed(error: Exception) -> tuple[bytes | None, str]:
    """Serialise an error for other ranks; some cannot be rebuilt from their arguments."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301  # our own bytes
    except Exception:  # noqa: BLE001  # whatever keeps it from being sent
        data = None
    return data, f"{type(error).__name__}: {error}"


def _unpacked(packed: tuple[bytes | None, str], rank: int) -> Exception:
    """Return another rank's error: of its own type, so that all ranks handle it alike."""
    data, text = packed
    if data is None:
        return RankLostError(f"rank {rank} failed with {text}")
    error: Exception = pickle.loads(data)  # noqa: S301  # written by a process of this run
    return error
