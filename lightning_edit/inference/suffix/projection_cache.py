"""In front of the first attention that runs again, only the tokens that change have to run.

The first running block gets the same hidden states in every pass, but for the tokens that vectors
are added to. What its linear layers make of the others (queries, keys, values) is kept.

Axis names: ``r`` -- texts, each with one token that changes; ``m`` -- tokens of the row; ``o`` --
width of a layer's output.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_edit.inference.hooks import hooked
from lightning_edit.models.view import ModelView


@dataclass(frozen=True)
class ProjectionCache:
    """Linear layers beside one block's attention, and what they give for tokens that stay.

    Args:
        layers: The layers, by name; one that runs behind the attention stays as it is.
        kept: What they gave, (1, m, o); the first pass fills it.
    """

    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    kept: dict[str, Float[Tensor, "1 m o"]] = field(default_factory=dict)

    @classmethod
    def of(cls, view: ModelView, block: int) -> "ProjectionCache":
        """Find the layers of a block.

        Args:
            view: The language model's structure.
            block: Number of the block; beyond the last one there is nothing.
        """
        if block >= view.num_blocks:
            return cls()
        out = view.model.get_submodule(view.block(block).attention_out)
        beside = view.model.get_submodule(view.block(block).attention_out.rpartition(".")[0])
        return cls({name: one for name, one in beside.named_children() if _linear(one, out)})

    def select(self, tokens: Int[Tensor, " m"]) -> "ProjectionCache":
        """Return this for some tokens of the row.

        Args:
            tokens: Their places.
        """
        kept = {name: one.index_select(1, tokens) for name, one in self.kept.items()}
        return ProjectionCache(self.layers, kept)

    @contextmanager
    def running(self, starts: Int[Tensor, " r"], ran: Sequence[int]) -> Iterator[None]:
        """Let the layers run for the tokens that change; the first time for all.

        Args:
            starts: The tokens that change.
            ran: Has an entry as soon as an attention has run.
        """
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if name in self.kept:
                    take, put = partial(_take, starts), partial(_put, starts, self.kept[name])
                    stack.enter_context(hooked(layer, take, put))
                else:
                    note = partial(self._note, name, ran)
                    stack.enter_context(hooked(layer, after=note))
            yield

    def _note(
        self, name: str, ran: Sequence[int], _: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        # What runs behind the attention is of tokens that are mixed already.
        if not ran and len(args) == 1 and isinstance(output, Tensor) and output.dim() == 3:
            self.kept[name] = output.detach()


def _linear(module: nn.Module, out: nn.Module) -> bool:
    """Whether a module is a layer with a matrix, and not the one behind the attention."""
    weight = getattr(module, "weight", None)
    return module is not out and isinstance(weight, Tensor) and weight.dim() == 2


def _take(starts: Tensor, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].index_select(1, starts),)


def _put(starts: Tensor, kept: Tensor, _: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return torch.index_copy(kept, 1, starts, output)
