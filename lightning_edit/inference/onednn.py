"""Large linear layers by oneDNN, in passes of float32 models on a CPU that need no gradient.

PyTorch's own float32 product on a CPU is MKL's, which does not use the widest instructions of every
maker's processors; oneDNN, which PyTorch brings along, does, and is faster on others too
(docs/speed.md). Results differ by rounding, so a run records which of the two it began with
(:class:`~lightning_edit.inference.pass_layout.PassLayout`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.inference.module_adapter import OWN_FORWARD, own_class

#: Numbers in a weight from which on oneDNN is used. It prepares a product anew for every number of
#: tokens that it has not seen, which takes half a millisecond: more than a small product itself.
LEAST_NUMBERS = 2**18 + 1
_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
#: Tokens of a pass from which on oneDNN is used; for fewer MKL is as fast.
LEAST_TOKENS = 8


def is_plain(module: nn.Module) -> bool:
    """Return whether a layer does nothing but multiply a float32 matrix on a CPU and add a bias.

    Args:
        module: Any module.
    """
    return type(module) in _LAYERS and _is_free(module)


def large_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model whose products oneDNN computes faster.

    A layer with an edit that acts at run time counts: its own product is what it was. None of a
    model that is compiled, also in parts, which would be compiled anew; and none whose weight is a
    flat part of itself, as FSDP keeps it between calls.

    Args:
        model: Any model.
    """
    modules: list[Any] = list(model.modules())
    if "forward" in model.__dict__ or any(
        one._compiled_call_impl is not None or "_orig_mod" in one._modules for one in modules
    ):
        return []
    return [
        one
        for one in modules
        if own_class(one) in _LAYERS
        and _is_free(one)
        and one.weight.dim() == 2
        and one.weight.numel() >= LEAST_NUMBERS
    ]


def _is_free(module: Any) -> bool:
    """Return whether a layer has plain float32 tensors, and nobody has replaced its product."""
    if "forward" in module.__dict__ or OWN_FORWARD in module.__dict__:
        return False
    values = [one for one in (module.weight, module.bias) if one is not None]
    # One that this PyTorch was not built with offers no operators.
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]  # torch's is untyped
        type(one) in (nn.Parameter, Tensor)
        and one.layout is torch.strided
        and one.dtype == torch.float32
        and one.device.type == "cpu"
        for one in values
    )


@contextmanager
def multiplied_by_onednn(model: nn.Module) -> Iterator[None]:
    """Let oneDNN multiply the model's large layers inside the block.

    A layer reads its weight when it is called, so what edits it meanwhile is seen. Under autocast,
    and where a gradient is wanted, layers run as they are.

    Args:
        model: A language model.
    """
    layers = [] if torch.is_autocast_enabled("cpu") else large_layers(model)
    placed: list[tuple[nn.Module, str, Any]] = []
    try:
        for layer in layers:
            own = own_class(layer)
            name = "forward" if type(layer) is own else OWN_FORWARD
            placed.append((layer, name, partial(_forward, layer, own)))
            layer.__dict__[name] = placed[-1][-1]
        yield
    finally:
        for layer, name, forward in placed:
            if layer.__dict__.get(name) is forward:
                del layer.__dict__[name]


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by oneDNN, without a gradient.

    Args:
        hidden: Inputs of a layer, float32 on a CPU, of shape (..., i).
        weight: Its weight of shape (o, i), as it is or laid out by oneDNN.
        bias: Its bias of shape (o,).
    """
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        hidden.contiguous(), weight, bias, "none", [], ""
    )
    return found


def _forward(layer: Any, own: Any, *args: Any, **kwargs: Any) -> Tensor:
    hidden = args[0] if len(args) == 1 and not kwargs else None
    if (
        hidden is None
        or hidden.shape[:-1].numel() < LEAST_TOKENS
        or hidden.dtype != torch.float32
        or torch.is_grad_enabled()
    ):
        found: Tensor = own.forward(layer, *args, **kwargs)
        return found
    return multiply(hidden, layer.weight if own is nn.Linear else layer.weight.mT, layer.bias)
