"""Behind the last attention nothing mixes tokens, so only those that are read have to run.

Axis names: ``m`` -- places read.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_edit.inference.hooks import hooked
from lightning_edit.models.view import BlockView, ModelView


@contextmanager
def run_at_positions(view: ModelView, places: Int[Tensor, " m"]) -> Iterator[None]:
    """Run what is behind the last block's attention for some tokens; the others get zeros.

    Args:
        view: The language model's structure.
        places: The tokens, counted over all rows.
    """
    # A place may be read twice (answer and watched word), but is to be computed once.
    places = torch.unique(places)
    last = view.blocks[-1]
    attended: list[bool] = []
    with ExitStack() as stack:
        out = view.model.get_submodule(last.attention_out)
        stack.enter_context(hooked(out, lambda *_: attended.append(True)))
        _enter(stack, out, _PositionSubset(places, lambda: True))
        for module in _beside_attention(view, last):
            _enter(stack, module, _PositionSubset(places, lambda: bool(attended)))
        if view.final_norm is not None:
            _enter(stack, view.final_norm, _PositionSubset(places, lambda: True))
        yield


def _beside_attention(view: ModelView, block: BlockView) -> list[nn.Module]:
    """Return a block's parts without the one that attention is in."""
    if block.mlp == block.mlp_down:
        # Without a module for the MLP its layers see rows and positions on one axis (OPT).
        return []
    out = view.model.get_submodule(block.attention_out)
    return [
        child
        for child in block.module.children()
        if out not in set(child.modules()) and any(True for _ in child.parameters())
    ]


class _PositionSubset:
    """Hooks that give a module some tokens, and put its result among zeros.

    Args:
        places: The tokens.
        active: Says whether a call is to be changed.
    """

    def __init__(self, places: Int[Tensor, " m"], active: Callable[[], bool]) -> None:
        self.places, self.active = places, active
        self.shapes: list[torch.Size | None] = []

    def take(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        shape = args[0].shape[:2] if args and self.active() else None
        self.shapes.append(shape)
        if shape is None:
            return None
        return tuple(self._cut(one) if _like(one, shape) else one for one in args)

    def _cut(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, self.places)[None]

    def put(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        shape = self.shapes.pop()
        if shape is None:
            return None
        whole = output.new_zeros(shape.numel(), *output.shape[2:])
        return torch.unflatten(whole.index_copy_(0, self.places, output[0]), 0, shape)


def _like(value: Any, shape: torch.Size) -> bool:
    """Whether a module's argument has a line a token."""
    return isinstance(value, Tensor) and value.shape[:2] == shape


def _enter(stack: ExitStack, module: nn.Module, some: _PositionSubset) -> None:
    stack.enter_context(hooked(module, some.take, some.put))
