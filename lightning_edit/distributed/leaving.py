"""End of process groups with the program.

A thread of gloo that frees a tensor while Python shuts down aborts the process. Threads end when
nothing holds their group, and Lightning ends the groups of NCCL alone.
"""

import atexit
import sys
import weakref
from typing import Protocol, runtime_checkable


@runtime_checkable
class _Holder(Protocol):
    def release(self) -> None:
        """Let go of process groups."""


_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()


def leave_at_exit(holder: _Holder | None = None) -> None:
    """Have the process groups that are left as the program ends be ended before Python shuts down.

    Args:
        holder: Something with groups of its own, which then lets go of them.
    """
    if holder is not None:
        _holders.add(holder)
    atexit.unregister(_leave)  # once is enough
    atexit.register(_leave)


def _leave() -> None:
    for holder in _holders:
        holder.release()
    distributed = sys.modules.get("torch.distributed")  # where nobody imported it, there are none
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
