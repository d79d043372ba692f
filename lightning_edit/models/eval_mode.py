"""Evaluation mode of a model, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Run a block with a model in eval mode, and restore every module's own mode afterwards.

    Gradients are as the caller has them. Modes belong to the model, so that of a model in training
    mode one thread at a time may be in such a block.

    Args:
        model: Any model; one that is no module has no mode.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
