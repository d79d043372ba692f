"""Inputs of a model's forward call, read from outside: names of arguments, and padding.

Axis names: ``b`` -- rows; ``t`` -- positions.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError


def unwrapped(model: Any) -> Any:
    """Return the model inside PEFT's wrapper; without one, the model.

    Args:
        model: A language model.
    """
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def named_inputs(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a call's arguments by name, those that were given by position too.

    Args:
        module: The module that is called.
        args: Arguments by position.
        kwargs: Arguments by name.
    """
    # Wrappers that hand on whatever they are given take what the model inside takes.
    kinds: tuple[Any, ...] = (type(module), type(unwrapped(module)))
    names = next(filter(None, [_positional(kind) for kind in kinds]), ())
    return dict(zip(names, args, strict=False)) | dict(kwargs)


@cache
def _positional(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of what a model's `forward` takes by position."""
    parameters = list(signature(kind.forward).parameters.values())[1:]
    by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(one.name for one in parameters if one.kind in by_place)


def real_positions(mask: Any, rows: int, length: int, filled: int) -> Bool[Tensor, "b t"]:
    """Return which positions of a call's input are no padding.

    Args:
        mask: The call's attention mask: (b, tokens), or (b, 1, t, tokens) as `generate` makes it
            for a static KV cache, or one by kind of layer; ``None``: there is no padding.
        rows: Rows of the input.
        length: Its positions.
        filled: Tokens in the KV cache.

    Raises:
        ArchitectureError: If the mask is of another form and there is no cache.
    """
    if isinstance(mask, Mapping):  # by kind of layer; a window leaves the diagonal as it is
        mask = next((one for one in mask.values() if one is not None), None)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= length:
        return mask[:, mask.shape[1] - length :].bool()
    if mask is None or filled:  # behind a KV cache nothing is decided
        return torch.ones(rows, length, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == length <= mask.shape[3]:
        itself = mask[:, 0].diagonal(dim1=1, dim2=2)  # a token attends to itself, padding does not
        return (itself if itself.dtype == torch.bool else itself >= 0).expand(rows, length)
    raise ArchitectureError(
        "edits on this model need to know which tokens are padding, and an attention mask of type "
        f"{type(mask).__name__} does not tell; give one of shape (rows, tokens)"
    )
