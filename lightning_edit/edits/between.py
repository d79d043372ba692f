"""Difference of two checkpoints as a delta: somebody's own fine-tuning becomes an edit.

Public as :meth:`lightning_edit.edits.delta.Delta.between`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.edits.adapter_folder import adapter_updates, is_adapter
from lightning_edit.edits.delta import Dense, LowRank, WeightUpdate
from lightning_edit.exceptions import ArchitectureError, ConfigError, NotFiniteError
from lightning_edit.functional.low_rank import low_rank_factors
from lightning_edit.models.loading import DTYPES, load_config, load_language_model
from lightning_edit.models.weights import Weight, weight

Weights = nn.Module | Mapping[str, Tensor] | str | Path
"""A model, a state dict, or the folder (or hub name) of a saved model."""

#: Relative rounding error of weights in float32: factors may leave so much of a weight's norm.
FLOAT32 = 2.0**-23


def weight_differences(
    before: Weights, after: Weights, max_rank: int
) -> Mapping[str, WeightUpdate]:
    """Return the update of every parameter that differs, by parameter name.

    Args:
        before: The unedited weights.
        after: The same with an edit; or the folder of a LoRA adapter, for a model or folder
            ``before``.
        max_rank: Highest rank that is looked for, see
            :meth:`lightning_edit.edits.delta.Delta.between`.

    Raises:
        ArchitectureError: If names, shapes, ties or dtypes do not fit, or weights are quantised.
        ConfigError: If both are state dicts.
        NotFiniteError: If a weight is not finite.
    """
    before = _loaded(before)
    if isinstance(after, str | Path) and is_adapter(after):
        if not isinstance(before, nn.Module):
            raise ConfigError(
                f"{after} is an adapter, which is read with its base model; give the model, or its "
                "folder, as `before`"
            )
        return adapter_updates(before, Path(after))
    after = _loaded(after)
    model = before if isinstance(before, nn.Module) else after
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "a state dict does not say which layers store their weights transposed (GPT-2's do), "
            "so one of `before` and `after` must be a model or the folder of one, got two state "
            "dicts"
        )
    if _holds_adapter(before) or _holds_adapter(after):
        raise ConfigError(
            "a peft model holds its adapter beside the weights; give the folder that "
            "`save_pretrained` wrote for it as `after`, or the model of `merge_and_unload()`"
        )
    old, new = _named(before), _named(after)
    _require_same_names(model, old, new)
    found: dict[str, WeightUpdate] = {}
    for name, _ in model.named_parameters():
        handle = weight(model, name)
        update = _update(handle, _value(handle, old), _value(handle, new), max_rank)
        if update is not None:
            found[name] = update
    return found


def _holds_adapter(model: object) -> bool:
    """Whether PEFT acts in a model; older versions leave their configuration on a merged one."""
    if not isinstance(model, nn.Module) or "peft" not in sys.modules:
        return False
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model, PeftModel) or any(
        isinstance(module, BaseTunerLayer) for module in model.modules()
    )


def _loaded(side: Weights) -> nn.Module | Mapping[str, Tensor] | str | Path:
    """Load the folder of a model in the dtype that it was saved in."""
    if not isinstance(side, str | Path) or is_adapter(side):
        return side
    stored = str(getattr(load_config(str(side)), "dtype", None) or "").removeprefix("torch.")
    model: nn.Module = load_language_model(str(side), stored if stored in DTYPES else "float32")[0]
    return model


def _named(side: Any) -> dict[str, Tensor]:
    """Return the tensors of a model or state dict by name, tied ones under each of their names.

    Buffers that no checkpoint holds, such as rotary frequencies, follow from the configuration.
    """
    if not isinstance(side, nn.Module):
        return dict(side)
    return side.state_dict() | dict(side.named_parameters(remove_duplicate=False))


def _require_same_names(model: nn.Module, old: dict[str, Any], new: dict[str, Any]) -> None:
    buffers = dict(model.named_buffers())
    known = dict(model.named_parameters(remove_duplicate=False)).keys() | buffers.keys()
    for side, values in (("before", old), ("after", new)):
        if unknown := sorted(values.keys() - known):
            raise ArchitectureError(
                f"`{side}` has {unknown[0]!r} (and {len(unknown) - 1} more), which "
                f"{type(model).__name__} has not; give two checkpoints of one model, without "
                "prefixes such as `module.`"
            )
    for name in buffers.keys() & old.keys() & new.keys():
        if not torch.equal(old[name].to(new[name].device), new[name]):
            raise ArchitectureError(
                f"the buffer {name} differs, but an edit changes parameters only; give two "
                "checkpoints of one model, which differ in weights"
            )


def _value(handle: Weight, values: Mapping[str, Tensor]) -> Tensor:
    """Return a parameter's values, under its own name or one that it is tied to."""
    names = [name for name in (handle.name, *handle.tied_to) if name in values]
    if not names:
        raise ArchitectureError(
            f"one of the two checkpoints has no {handle.name}; give two complete checkpoints of "
            "one model"
        )
    first, *others = (values[name].detach() for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if not torch.equal(first, other):
            raise ArchitectureError(
                f"{names[0]} and {name} are tied in one checkpoint but differ in the other, so one "
                "update cannot serve both; untie them in the unedited model too "
                "(tie_word_embeddings=False)"
            )
    return first


def _update(handle: Weight, before: Tensor, after: Tensor, max_rank: int) -> WeightUpdate | None:
    name = handle.name
    if before.shape != after.shape:
        raise ArchitectureError(
            f"{name} has shape {tuple(before.shape)} before and {tuple(after.shape)} after; give "
            "two checkpoints of one model (a vocabulary must not have been resized)"
        )
    if not all(one.is_floating_point() and one.element_size() > 1 for one in (before, after)):
        raise ArchitectureError(
            f"{name} is stored as {before.dtype} before and {after.dtype} after, of which one is "
            "quantised; give unquantised checkpoints"
        )
    if torch.promote_types(before.dtype, after.dtype) != after.dtype:
        raise ArchitectureError(
            f"{name} is {before.dtype} before but {after.dtype} after, so that its rounding would "
            "look like an edit; load both in one dtype"
        )
    after = after.to(before.device)
    # Exact for values whose size is comparable.
    difference = after.double() - before.double()
    if not bool(torch.isfinite(difference).all()):
        raise NotFiniteError(f"{name} is not finite in one of the two; give healthy checkpoints")
    if not bool(difference.any()):
        return None
    oriented = difference.mT.contiguous() if handle.transposed else difference
    if oriented.ndim == 2:
        rows, columns = oriented.shape
        # Factors that take more than half of the memory of the matrix are not worth it.
        limit = min(max_rank, rows * columns // (2 * (rows + columns)))
        factors = low_rank_factors(oriented, limit, FLOAT32 * float(after.double().norm()))
        if factors is not None:
            return LowRank(*factors)
    narrow = oriented.float()
    start = before.double().mT if handle.transposed else before.double()
    wanted = (start + oriented).to(before.dtype)
    exact = torch.equal((start + narrow.double()).to(before.dtype), wanted)
    return Dense(narrow if exact else oriented)
