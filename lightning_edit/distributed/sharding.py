"""Work divided among processes (data parallel): shares, gathered results, sharded weights."""

from collections.abc import Sequence
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
    """Which forward passes are this process's: every ``processes``-th from ``rank`` on.

    All processes read and tokenise the same text, so together they do the passes that one process
    would do, and a token budget is kept to the token.
    """

    rank: int = 0
    processes: int = 1

    def mine(self, number: int) -> bool:
        """Return whether a pass of this number is done here."""
        return number % self.processes == self.rank
