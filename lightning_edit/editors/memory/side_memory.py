"""Side memories of WISE: copies of a down-projection, and the activation that routes to them.

Edits are divided into shards, each with a random subspace (mask) of the matrix. Shards that are
full merge into one memory by TIES; a prompt reads the memory it activates most, or none.

Axis names: ``b`` -- rows; ``t`` -- positions; ``m`` -- memories; ``c`` -- cells of the matrix that
an edit may change; ``d_in``/``d_out`` -- width of the projection's input and output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.base import Memory
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.side_memory import ties
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter

Activation = Literal["weights", "outputs"]
#: Name of the decision.
_NAME = "side_memory"


@dataclass
class Shard:
    """What the edits of one shard come to.

    Args:
        update: Change of the matrix, (d_out, d_in) in float64, so that sums are those of a rebuild.
        lowest: Smallest activation of its edits' prompts.
        edits: Number of edits.
    """

    update: Float[Tensor, "d_out d_in"]
    lowest: float = float("inf")
    edits: int = 0


class ReadMemory(NamedTuple):
    """A memory as prompts read it.

    Args:
        update: Side matrix minus the model's own, (d_out, d_in).
        lowest: Smallest activation of its edits' prompts.
    """

    update: Float[Tensor, "d_out d_in"]
    lowest: float


@dataclass
class SideMemory(Memory):
    """Shards of the edits in force.

    Args:
        cells: Returns the flat indices of the entries that a shard's edits hold.
        shape: Shape (d_out, d_in) of the matrix.
        size: Edits per shard (save_freq).
        shards_per_memory: Shards that merge into one memory; 0: all shards are one memory.
        density: Share of the entries that TIES keeps.
    """

    cells: Callable[[int], Tensor]
    shape: tuple[int, int]
    size: int
    shards_per_memory: int
    density: float
    shards: dict[int, Shard] = field(default_factory=dict)
    _merged: dict[tuple[tuple[int, int], ...], ReadMemory] = field(default_factory=dict)

    @property
    def next_shard(self) -> int:
        """Number of the shard to which the next edit goes: the first with room."""
        free = (n for n in count() if n not in self.shards or self.shards[n].edits < self.size)
        return next(free)

    def shard(self, number: int) -> Shard:
        """Return a shard, empty if it has no edit yet.

        Args:
            number: Its number.
        """
        return self.shards.get(number) or Shard(torch.zeros(self.shape, dtype=torch.float64))

    def add(self, delta: Delta) -> None:
        """Add an edit's change to its shard.

        Args:
            delta: An edit with ``values``, ``shard`` and ``activation``, one row per request.
        """
        state = delta.state
        rows = zip(state["values"], state["shard"], state["activation"], strict=True)
        for values, number, activation in rows:
            shard = self.shards.setdefault(int(number), self.shard(int(number)))
            shard.update = (
                shard.update.flatten()
                .index_add(0, self.cells(int(number)), values.to("cpu", torch.float64))
                .view(self.shape)
            )
            shard.lowest = min(shard.lowest, float(activation))
            shard.edits += 1

    def memories(self) -> list[ReadMemory]:
        """Return the memories that prompts can read: merged groups of full shards, and the rest."""
        numbers = sorted(self.shards)
        groups: dict[int, list[int]] = {}
        for number in numbers:
            group = number // self.shards_per_memory if self.shards_per_memory else 0
            groups.setdefault(group, []).append(number)
        found: list[ReadMemory] = []
        for members in groups.values():
            full = all(n < numbers[-1] or self.shards[n].edits >= self.size for n in members)
            merges = not self.shards_per_memory or (full and len(members) == self.shards_per_memory)
            parts = [members] if merges else [[one] for one in members]
            found += [self._read(part) for part in parts]
        return found

    def _read(self, numbers: Sequence[int]) -> ReadMemory:
        """Return the memory of some shards; those that are full are merged once."""
        key = tuple((one, self.shards[one].edits) for one in numbers)
        if key not in self._merged:
            older = [one for one in self._merged if {n for n, _ in one} & set(numbers)]
            for one in older:
                del self._merged[one]
            self._merged[key] = self._merge([self.shards[one] for one in numbers])
        return self._merged[key]

    def _merge(self, shards: Sequence[Shard]) -> ReadMemory:
        updates = torch.stack([one.update for one in shards])
        merged = updates[0] if len(shards) == 1 else ties(updates, self.density)
        return ReadMemory(merged.float(), min(one.lowest for one in shards))


def activations(
    change: Float[Tensor, "b t d_out"],
    output: Float[Tensor, "b t d_out"],
    kind: Activation,
    nonlinearity: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b t"]:
    """Return how much each token activates a side memory.

    Args:
        change: What the memory adds to the projection's output.
        output: The projection's own output.
        kind: ``weights``: the norm of the change, ‖A(x)(W' − W)‖. ``outputs``: the norm of the
            difference that a nonlinearity of both outputs has.
        nonlinearity: Of ``outputs``.
    """
    if kind == "outputs":
        change = nonlinearity(output + change) - nonlinearity(output)
    # The norm has no gradient at zero, where a side memory begins.
    return (change.square().sum(-1) + torch.finfo(change.dtype).tiny).sqrt()


class SideMemoryAdapter(ModuleAdapter):
    """Adds a side memory's part to the projection's output of prompts that activate it.

    Args:
        memories: The memories.
        ratio: Share of a memory's lowest activation above which a prompt reads it (act_ratio).
        kind: What the activation is.
        nonlinearity: Of the activation ``outputs``.
    """

    by_prompt = True

    def __init__(
        self,
        memories: Sequence[ReadMemory],
        ratio: float,
        kind: Activation,
        nonlinearity: Callable[[Tensor], Tensor],
    ) -> None:
        self.memories = list(memories)
        self.ratio = ratio
        self.kind: Activation = kind
        self.nonlinearity = nonlinearity

    def change(self, hidden: Tensor, memory: int) -> Tensor:
        """Return what a memory adds to the output, in single precision.

        Args:
            hidden: Input of the projection.
            memory: Number of the memory.
        """
        update = self.memories[memory].update.to(hidden.device)
        # It stays there: a generation has many steps.
        self.memories[memory] = self.memories[memory]._replace(update=update)
        return hidden.to(update.dtype) @ update.mT

    def choose(self, hidden: Tensor, output: Tensor, call: ModelCall) -> Tensor:
        """Return the memory that each prompt reads, -1 for none.

        Args:
            hidden: Input of the projection, (b, t, d_in).
            output: Its own output, (b, t, d_out).
            call: The call, which reads prompts.
        """
        levels = []
        for number, memory in enumerate(self.memories):
            change = self.change(hidden, number)
            each = activations(change, output.to(change.dtype), self.kind, self.nonlinearity)
            level = call.prompt_mean(each[..., None])[:, 0]
            levels.append(torch.where(level > self.ratio * memory.lowest, level, -1.0))
        best, memory_of = torch.stack(levels).max(0)
        return torch.where(best >= 0, memory_of, -1)

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the output, with the chosen memory's part in the rows that read one."""
        assert call is not None
        chosen = call.decide(_NAME, lambda: self.choose(hidden, output, call))
        found = output
        for number in sorted(set(chosen.tolist()) - {-1}):
            rows = (chosen == number).nonzero().squeeze(1)
            new = output[rows] + self.change(hidden[rows], number)
            found = found.index_copy(0, rows, new.to(output.dtype))
        return found
