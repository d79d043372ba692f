"""Position subset: run the last layers only at positions whose logits are read.

Axis names: ``m`` -- positions read.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_edit.inference.hooks import hooked
from lightning_edit.models.view import ModelView


@contextmanager
def run_at_positions(view: ModelView, places: Int[Tensor, " m"]) -> Iterator[None]:
    """Run the layers after the last block's attention at some positions; others get zeros.

    Args:
        view: The language model's structure.
        places: Indices of the tokens, counted over all rows, each once.
    """
    last = view.blocks[-1]
    attended: list[bool] = []
    with ExitStack() as stack:
        out = view.model.get_submodule(last.attention_out)
        stack.enter_context(hooked(out, lambda *_: attended.append(True)))
        _register(stack, out, _PositionSubset(places, lambda: True))
        for module in view.last_block_parts:
            _register(stack, module, _PositionSubset(places, lambda: bool(attended)))
        if view.final_norm is not None:
            _register(stack, view.final_norm, _PositionSubset(places, lambda: True))
        yield


class _PositionSubset:
    """Hooks that gather some positions of a module's input and scatter its output into zeros.

    Args:
        places: Indices of the tokens.
        active: Returns whether the hooks apply to a call.
    """

    def __init__(self, places: Int[Tensor, " m"], active: Callable[[], bool]) -> None:
        self.places, self.active = places, active
        self.shapes: list[torch.Size | None] = []

    def gather(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        shape = args[0].shape[:2] if args and self.active() else None
        self.shapes.append(shape)
        if shape is None:
            return None
        return tuple(self._select(one) if _has_token_axes(one, shape) else one for one in args)

    def _select(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def scatter(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        shape = self.shapes.pop()
        if shape is None:
            return None
        whole = output.new_zeros(shape.numel(), *output.shape[2:])
        return torch.unflatten(whole.index_copy_(0, self.places, output.squeeze(0)), 0, shape)


def _has_token_axes(value: Any, shape: torch.Size) -> bool:
    """Return whether a module's argument has one row per token."""
    return isinstance(value, Tensor) and value.shape[:2] == shape


def _register(stack: ExitStack, module: nn.Module, subset: _PositionSubset) -> None:
    stack.enter_context(hooked(module, subset.gather, subset.scatter))
