"""Evaluation mode without gradients, for everything that asks a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_edit.models.eval_mode import in_eval_mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, and restore every module's mode afterwards.

    Args:
        model: Any model; in training, the mode of each dropout module is restored.
    """
    with in_eval_mode(model), torch.no_grad():
        yield
