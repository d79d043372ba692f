"""Residual memory of MEMOIR: a matrix beside a down-projection, read through masks of its inputs.

Axis names: ``b`` -- rows; ``t`` -- positions; ``m`` -- stored masks; ``k`` -- inputs in a mask;
``c`` -- inputs that an edit has written to; ``d_in``/``d_out`` -- width of the projection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.memory.base import Memory
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.top_hash import overlaps
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter

#: Name of the decision.
_NAME = "residual_memory"
#: Token ids of an edited prompt.
Prompt = tuple[int, ...]


class WrittenEdit(NamedTuple):
    """What one edit has written; -1 fills up columns and masks.

    Args:
        columns: Inputs that it has written to.
        values: What it has added there.
        masks: Masks of its prompt, in every context.
    """

    columns: Int[Tensor, " c"]
    values: Float[Tensor, "d_out c"]
    masks: Int[Tensor, "m k"]


@dataclass
class ResidualMemory(Memory):
    """What the edits in force have written, and the masks through which it is read.

    An edit of a prompt takes the place of an earlier one of the very same prompt.

    Args:
        shape: Shape (d_out, d_in) of the projection.
        background: What is subtracted before the hash, as the first edit in force holds it;
            ``None`` without an edit.

    Attributes:
        matrix: The memory, in float64, so that sums are those of a rebuild.
        masks: Stored masks, (m, k); each once.
    """

    shape: tuple[int, int]
    background: Float[Tensor, " d_in"] | None = None

    def __post_init__(self) -> None:
        self._edits: dict[Prompt, WrittenEdit] = {}
        self._sum()

    def _sum(self) -> None:
        """Add up the edits from the first on."""
        self.matrix = torch.zeros(self.shape, dtype=torch.float64)
        self.masks: list[Int[Tensor, " k"]] = []
        self._known: set[tuple[int, ...]] = set()
        for edit in self._edits.values():
            self._write(edit)

    def without(self, prompt: Sequence[int]) -> "ResidualMemory":
        """Return the memory without the edit of a prompt: itself if there is none.

        Args:
            prompt: Token ids of the prompt.
        """
        if tuple(prompt) not in self._edits:
            return self
        found = ResidualMemory(self.shape, self.background)
        found._edits = {one: edit for one, edit in self._edits.items() if one != tuple(prompt)}
        found._sum()
        return found

    def add(self, delta: Delta) -> None:
        """Add what an edit has written, and its masks.

        Args:
            delta: An edit with ``prompt``, ``columns``, ``values``, ``masks`` and ``background``,
                one row per request; -1 fills up rows of the first four.
        """
        state = delta.state
        if self.background is None:
            self.background = state["background"][0].cpu()
        names = ("prompt", "columns", "values", "masks")
        for ids, *written in zip(*(state[name] for name in names), strict=True):
            prompt, edit = tuple(one for one in ids.tolist() if one >= 0), WrittenEdit(*written)
            again = self._edits.pop(prompt, None) is not None
            self._edits[prompt] = edit
            if again:
                self._sum()
            else:
                self._write(edit)

    def _write(self, edit: WrittenEdit) -> None:
        """Add one edit to the sum."""
        count = int((edit.columns >= 0).sum())
        written = edit.values[:, :count].to("cpu", torch.float64)
        self.matrix = self.matrix.index_add(1, edit.columns[:count].long().cpu(), written)
        for mask in edit.masks[edit.masks[:, 0] >= 0].long().cpu():
            key = tuple(mask.tolist())
            if key not in self._known:
                self._known.add(key)
                self.masks.append(mask)


class ResidualMemoryAdapter(ModuleAdapter):
    """Adds what a residual memory holds under the stored mask that a prompt's own is most like.

    Args:
        memory: The memory, of which it keeps a copy.
        hash_of: Returns the masks of prompts from the mean of their inputs.
        threshold: Smallest overlap at which a prompt reads the memory, τ.
    """

    by_prompt = True

    def __init__(
        self, memory: ResidualMemory, hash_of: Callable[[Tensor], Tensor], threshold: float
    ) -> None:
        self.matrix = memory.matrix.float()
        self.masks = torch.stack(memory.masks)
        self.hash_of = hash_of
        self.threshold = threshold

    def choose(self, features: Float[Tensor, "b d_in"]) -> Int[Tensor, " b"]:
        """Return the stored mask that each prompt reads with, -1 for none.

        Args:
            features: Mean over the tokens of each prompt.
        """
        stored = self.masks.to(features.device)
        share = overlaps(self.hash_of(features), stored, features.shape[1])
        best, mask = share.max(1)
        return torch.where(best >= self.threshold, mask, -1)

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the output, with the memory's part in the rows that read it."""
        assert call is not None
        chosen = call.decide(_NAME, lambda: self.choose(call.prompt_mean(hidden.float())))
        found = output
        for number in sorted(set(chosen.tolist()) - {-1}):
            rows = (chosen == number).nonzero().squeeze(1)
            mask = self.masks[number].to(hidden.device)
            self.matrix = self.matrix.to(hidden.device)  # stays there: steps are many
            part = self.matrix[:, mask]
            new = output[rows] + hidden[rows][..., mask].to(part.dtype) @ part.mT
            found = found.index_copy(0, rows, new.to(output.dtype))
        return found
