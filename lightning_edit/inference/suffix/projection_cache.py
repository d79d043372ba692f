"""Projection cache: queries, keys and values of unchanged tokens in the first running block.

The first running block gets the same hidden states in every pass, except for the tokens that
vectors are added to. Its projections (queries, keys, values) of all others are cached, so before
its attention only changed tokens run.

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
    """Cached outputs of one block's attention projections, for tokens that do not change.

    Args:
        layers: The projections, by name; one that runs after the attention is never cached.
        cached: Their outputs, (1, m, o); the first pass fills it.
    """

    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    cached: dict[str, Float[Tensor, "1 m o"]] = field(default_factory=dict)

    @classmethod
    def of(cls, view: ModelView, block: int) -> "ProjectionCache":
        """Find the attention projections of a block.

        Args:
            view: The language model's structure.
            block: Number of the block; beyond the last one the cache is empty.
        """
        if block >= view.num_blocks:
            return cls()
        out = view.model.get_submodule(view.block(block).attention_out)
        attention = view.model.get_submodule(view.block(block).attention_out.rpartition(".")[0])
        return cls(
            {name: one for name, one in attention.named_children() if _is_projection(one, out)}
        )

    def select(self, tokens: Int[Tensor, " m"]) -> "ProjectionCache":
        """Return the cache of some tokens of the row.

        Args:
            tokens: Indices of the tokens.
        """
        cached = {name: one.index_select(1, tokens) for name, one in self.cached.items()}
        return ProjectionCache(self.layers, cached)

    @contextmanager
    def reuse(self, starts: Int[Tensor, " r"], ran: Sequence[int]) -> Iterator[None]:
        """Run the projections for changed tokens only; the first pass runs and caches all tokens.

        Args:
            starts: Indices of the tokens that change.
            ran: Has an entry as soon as an attention layer has run.
        """
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if name in self.cached:
                    scatter = partial(_scatter, starts, self.cached[name])
                    stack.enter_context(hooked(layer, partial(_gather, starts), scatter))
                else:
                    record = partial(self._record, name, ran)
                    stack.enter_context(hooked(layer, after=record))
            yield

    def _record(
        self, name: str, ran: Sequence[int], _: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        # A layer after the attention gets mixed tokens, so its output is not constant.
        if not ran and len(args) == 1 and isinstance(output, Tensor) and output.dim() == 3:
            self.cached[name] = output.detach()


def _is_projection(module: nn.Module, out: nn.Module) -> bool:
    """Return whether a module has a weight matrix and is not the attention's output projection."""
    weight = getattr(module, "weight", None)
    return module is not out and isinstance(weight, Tensor) and weight.dim() == 2


def _gather(starts: Tensor, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].index_select(1, starts),)


def _scatter(
    starts: Tensor, cached: Tensor, _: nn.Module, args: tuple[Tensor], output: Tensor
) -> Tensor:
    return torch.index_copy(cached, 1, starts, output)
