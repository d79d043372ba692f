"""Copies of an edited model in another number format, or merged, to see whether edits survive."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.models.weights import weight

Conversion = Literal["float16", "bfloat16", "int8", "merge"]
"""``float16``, ``bfloat16``: all weights cast. ``int8``: weights of linear layers in 8-bit integers
with a scale for each output (``torchao``). ``merge``: the mean of edited and unedited weights."""

CONVERSIONS: tuple[Conversion, ...] = get_args(Conversion)


def converted(
    model: nn.Module, kind: Conversion, pristine: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Return a converted copy of a model; the model itself is unchanged.

    Args:
        model: The edited language model.
        kind: The conversion.
        pristine: The unedited values of the edited weights by parameter name, for ``merge``.

    Raises:
        ConfigError: If ``int8`` is asked for without ``torchao``, or ``merge`` without the unedited
            values.
        ArchitectureError: If ``int8`` is asked for and layers are of a class that ``torchao``
            leaves as they are.
    """
    steps: dict[str, Callable[[], nn.Module]] = {
        "float16": lambda: _cast(model, torch.float16),
        "bfloat16": lambda: _cast(model, torch.bfloat16),
        "int8": lambda: _int8(model),
        "merge": lambda: _merged(model, pristine),
    }
    return steps[kind]()


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    found: Any = copy.deepcopy(model)
    return found.to(dtype)  # type: ignore[no-any-return]  # a module


def _merged(model: nn.Module, pristine: Mapping[str, Tensor] | None) -> nn.Module:
    if pristine is None:
        raise ConfigError(
            "the conversion `merge` needs the unedited weights, which only a run of edits has; "
            "leave it out of `conversions` in other training"
        )
    found = copy.deepcopy(model)
    for name, value in pristine.items():
        handle = weight(found, name)
        handle.write((handle.read() + value.double()) / 2)
    return found


def _int8(model: nn.Module) -> nn.Module:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ConfigError(
            "the conversion `int8` needs torchao; install it with pip install "
            '"lightning-edit[int8]", or leave it out of `conversions`'
        ) from error
    odd = sorted({type(one).__name__ for one in model.modules() if isinstance(one, Conv1D)})
    if odd:
        raise ArchitectureError(
            f"torchao quantises torch.nn.Linear, but {type(model).__name__} has layers of class "
            f"{odd[0]}, which would silently stay as they are; leave int8 out of `conversions`"
        )
    found = copy.deepcopy(model)
    quantize_(found, Int8WeightOnlyConfig())
    return found
