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

#: Numbers in a weight from which on oneDNN is used. It prepares a product anew for every number of
#: tokens that it has not seen, which takes half a millisecond: more than a small product itself.
LEAST_NUMBERS = 2**18 + 1
#: Tokens of a pass from which on oneDNN is used; for fewer MKL is as fast.
LEAST_TOKENS = 8


def is_plain(module: nn.Module) -> bool:
    """Return whether a layer does nothing but multiply a float32 matrix on a CPU and add a bias.

    Args:
        module: Any module.
    """
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
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


def large_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model whose products oneDNN computes faster.

    None of a compiled model, which would be compiled anew; and none whose weight is a flat part of
    itself, as FSDP keeps it between calls.

    Args:
        model: Any model.
    """
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        return []
    plain: list[Any] = [one for one in model.modules() if is_plain(one)]
    return [one for one in plain if one.weight.dim() == 2 and one.weight.numel() >= LEAST_NUMBERS]


@contextmanager
def multiplied_by_onednn(model: nn.Module) -> Iterator[None]:
    """Let oneDNN multiply the model's large layers inside the block.

    A layer reads its weight when it is called, so what edits it meanwhile is seen. Under autocast,
    and where a gradient is wanted, layers run as they are.

    Args:
        model: A language model.
    """
    layers = [] if torch.is_autocast_enabled("cpu") else large_layers(model)
    for layer in layers:
        layer.__dict__["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


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


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    tokens = hidden.shape[:-1].numel()
    if tokens < LEAST_TOKENS or torch.is_grad_enabled() or hidden.dtype != torch.float32:
        found: Tensor = type(layer).forward(layer, hidden)
        return found
    weight = layer.weight if type(layer) is nn.Linear else layer.weight.mT
    return multiply(hidden, weight, layer.bias)
