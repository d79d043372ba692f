"""Checks before an edit: finite arguments and weights, no edits that would be dropped."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from lightning_edit.exceptions import ConfigError, LedgerError, NotFiniteError


def require_finite_arguments(editor: Any) -> None:
    """Check that every numeric setting of an editor is finite.

    NaN passes every comparison with a bound, and would end in weights that are not finite.

    Args:
        editor: The editor; its settings are numbers, lists and dataclasses among its attributes.

    Raises:
        ConfigError: If one is NaN or infinite.
    """
    for name, value in vars(editor).items():
        if name.startswith("_"):
            continue
        for setting, number in _numbers(name, value):
            if not math.isfinite(number):
                raise ConfigError(
                    f"{setting} of {type(editor).__name__} is {number}; give a finite number"
                )


def require_nothing_in_force(editor: Any) -> None:
    """Check that an editor which acts at run time has no edits in force that would be dropped.

    What acts is built from one list of edits: that of the newest binding, handle or run.

    Args:
        editor: The editor, with ``last_ledger``.

    Raises:
        LedgerError: If it has.
    """
    ledger = editor.last_ledger
    if editor.edits_weights or ledger is None or not ledger.request_ids:
        return
    ids = ledger.request_ids
    raise LedgerError(
        f"this {type(editor).__name__} has {len(ids)} edits in force ({', '.join(ids[:4])}"
        f"{', …' if len(ids) > 4 else ''}), which act at run time and would be dropped; go on with "
        "their handle (`edited.edit(...)`), undo them first, or make another editor object for "
        "another model"
    )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(name, item)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from _numbers(part.name, getattr(value, part.name))


def require_finite_weights(model: nn.Module) -> None:
    """Check that the weights of a model are finite: every edit is solved from its outputs.

    Args:
        model: The language model.

    Raises:
        NotFiniteError: If a weight has NaN or infinite entries.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" or not parameter.numel():
            continue
        # One pass without a copy; NaN is carried into both.
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise NotFiniteError(
                f"the model's own weight {name} has NaN or infinite entries, so nothing can be "
                "edited; load an intact checkpoint, or another dtype (float16 holds up to 65504)"
            )
