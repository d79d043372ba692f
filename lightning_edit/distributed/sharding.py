"""Data-parallel work sharding over ranks, all-gather of results, detection of sharded weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model's weights are sharded over processes (FSDP2, tensor parallel).

    Args:
        model: The language model.
    """
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather(items: Sequence[_Item]) -> list[_Item]:
    """All-gather the items of all processes.

    Args:
        items: This process's items, as plain containers.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return list(items)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


@dataclass(frozen=True)
class Share:
    """Data-parallel share of a rank: every ``processes``-th item from ``rank`` on.

    For key statistics the items are forward passes. All processes read and tokenise the same text,
    so together they run the passes that one process would run, and a token budget is exact.

    Args:
        rank: Rank of this process.
        processes: Number of processes.
    """

    rank: int = 0
    processes: int = 1

    def mine(self, number: int) -> bool:
        """Return whether the item with this index belongs to this rank."""
        return number % self.processes == self.rank

    def map(
        self,
        items: Sequence[_Item],
        work: Callable[[Sequence[_Item]], Sequence[_Result]],
        model: nn.Module,
    ) -> list[tuple[int, _Result]]:
        """Map a function over this rank's share of the items.

        If the weights are sharded over processes, all processes run all items, since each forward
        pass needs them all; each process then counts only its share of the results.

        Args:
            items: All items, the same on every process.
            work: Returns one result per item. It must not wait for other processes by itself.
            model: The language model that ``work`` runs.

        Returns:
            Indices and results of the items that this process counts; empty where there are fewer
            items than processes.
        """
        mine = range(self.rank, len(items), self.processes)
        if self.processes > 1 and is_sharded(model):
            results = work(items)
            return [(number, results[number]) for number in mine]
        share = [items[number] for number in mine]
        return list(zip(mine, work(share) if share else [], strict=True))
