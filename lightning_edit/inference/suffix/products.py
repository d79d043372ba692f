"""Products and activations in the passes of a search, with fewer and faster operators.

A search multiplies the same weights with few tokens again and again. PyTorch's own product for
float32 on a CPU (BLAS) lays a weight out anew in every call, which takes as long as the product
when there are few tokens. oneDNN, which PyTorch brings along, takes a weight that was laid out once
(packed); without packing too it is faster for some hundred tokens. Results differ by rounding.
Packed are weights of forward products only: those of gradients would have to be transposed, which
takes longer than it saves.

Used are float32 ``nn.Linear`` and ``Conv1D`` layers with ordinary weights on a CPU. Every other
layer (quantised, half precision, with an adapter, on a GPU, under autocast) runs as it always
does. GELU by tanh, which transformers writes out in eight operators, runs as PyTorch's one.

Axis names: ``o`` -- outputs of a layer; ``i`` -- inputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from lightning_edit.inference.onednn import is_plain, multiply
from lightning_edit.models.view import ModelView

#: Most tokens of a pass for which weights are packed; for more it is worth little.
MOST_TOKENS = 128
#: Passes before weights are packed, which takes as long as some passes save.
PASSES_BEFORE = 2
#: Most numbers in all packed weights: 512 MiB.
_MOST_PACKED = 2**27


class Products:
    """Products with the weights of a search, which do not change while it lasts, and activations.

    Args:
        view: The language model's structure.
        block: Number of the lowest block that runs.
    """

    def __init__(self, view: ModelView, block: int) -> None:
        modules = [one for part in view.blocks[block:] for one in part.module.modules()]
        self.layers = [_Layer(one) for one in dict.fromkeys([*modules, view.head]) if is_plain(one)]
        self.replaced: dict[nn.Module, Callable[[Tensor], Tensor]] = {
            one: _gelu
            for one in dict.fromkeys(modules)
            if type(one) in (NewGELUActivation, FastGELUActivation)
            and "forward" not in one.__dict__
        }
        numbers = sum(one.module.get_parameter("weight").numel() for one in self.layers)
        self.may_pack = numbers <= _MOST_PACKED
        self.passes = 0

    @contextmanager
    def used(self, tokens: int) -> Iterator[None]:
        """Replace layers and activations inside the ``with`` block, for one pass.

        Args:
            tokens: Tokens of the pass.
        """
        if torch.is_autocast_enabled("cpu"):  # layers choose their own type there
            yield
            return
        if self.may_pack and self.passes >= PASSES_BEFORE and tokens <= MOST_TOKENS:
            for layer in self.layers:
                layer.pack(tokens)
        self.passes += 1
        self.replaced |= {layer.module: layer.product for layer in self.layers}
        for module, forward in self.replaced.items():
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module in self.replaced:
                del module.__dict__["forward"]


class _Layer:
    """A plain layer, with its weight as (o, i) for outputs and as (i, o) for gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        stored = module.get_parameter("weight").detach()
        self.weight = stored if isinstance(module, nn.Linear) else stored.mT
        bias: Tensor | None = getattr(module, "bias", None)
        self.bias = None if bias is None else bias.detach()
        self.packed = False
        self.product = partial(_product, self.weight, self.weight.mT, self.bias)

    def pack(self, tokens: int) -> None:
        """Lay the weight out for products with some number of tokens, once."""
        if not self.packed:
            self.packed = True
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), tokens)
            self.product = partial(_product, packed, self.weight.mT, self.bias)


_gelu = partial(nn.functional.gelu, approximate="tanh")


def _product(weight: Tensor, back: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    if hidden.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Product.apply(hidden, weight, back, bias)  # type: ignore[no-untyped-call]  # torch's is untyped
        return found
    return multiply(hidden, weight, bias)


class _Product(torch.autograd.Function):
    """A layer's output, with a gradient for its input alone."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, back: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.back = back
        return multiply(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return multiply(gradient, ctx.back, None), None, None, None
