"""Work divided among processes (data parallel): shares, gathered results, sharded weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_sharded(model: nn.Module) -> bool:
    """Say whether the model's weights are spread over processes (FSDP2, tensor parallel).

    Args:
        model: The language model.
    """
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather(items: Sequence[_Item]) -> list[_Item]:
    """Return the items of all processes to each of them.

    Args:
        items: This process's, as plain containers.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return list(items)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


@dataclass(frozen=True)
class Share:
    """Which items are this process's: every ``processes``-th from ``rank`` on.

    In collecting statistics the items are forward passes. All processes read and tokenise the same
    text, so together they do the passes that one process would do, and a token budget is kept to
    the token.

    Args:
        rank: Number of this process.
        processes: How many there are.
    """

    rank: int = 0
    processes: int = 1

    def mine(self, number: int) -> bool:
        """Return whether a pass of this number is done here."""
        return number % self.processes == self.rank

    def map(
        self,
        items: Sequence[_Item],
        work: Callable[[Sequence[_Item]], Sequence[_Result]],
        model: nn.Module,
    ) -> list[tuple[int, _Result]]:
        """Do work on this process's share of some items.

        Where each process holds a part of every weight, all processes do all of the work, since
        each forward pass needs them all; the share then is what each of them counts.

        Args:
            items: All items, the same on every process.
            work: One result an item. It must not wait for other processes by itself.
            model: The language model that the work runs.

        Returns:
            Numbers and results of the items that are this process's to count; empty where there
            are fewer items than processes.
        """
        mine = range(self.rank, len(items), self.processes)
        if self.processes > 1 and is_sharded(model):
            results = work(items)
            return [(number, results[number]) for number in mine]
        share = [items[number] for number in mine]
        return list(zip(mine, work(share) if share else [], strict=True))
