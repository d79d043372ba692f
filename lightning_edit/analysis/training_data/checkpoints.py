"""Checkpoints of a fine-tuning, one an epoch: Lightning's files, or folders of saved models."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_edit.exceptions import CheckpointError
from lightning_edit.storage.checkpoint_file import read_checkpoint

_REMEDY = (
    "give what a fine-tuning saved after each epoch: Lightning's .ckpt files, or folders that "
    "`model.save_pretrained` wrote"
)


def checkpoint_paths(given: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that are named, those of a folder in natural order (2 before 10).

    Args:
        given: Checkpoints, or one folder that holds nothing but checkpoints.

    Raises:
        CheckpointError: If there is none.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir() and not (path / "config.json").is_file():
            inside = [one for one in path.iterdir() if _is_checkpoint(one)]
            found += sorted(inside, key=lambda one: _natural(one.name))
        elif _is_checkpoint(path):
            found.append(path)
        else:
            state = "something else" if path.exists() else "nothing there"
            raise CheckpointError(f"{path}: expected a checkpoint, got {state}; {_REMEDY}")
    if not found:
        where = ", ".join(map(str, given)) or "no path"
        raise CheckpointError(f"expected at least one checkpoint, got none in {where}; {_REMEDY}")
    return found


def read_weights(path: Path, model: Any) -> dict[str, Tensor]:
    """Read a checkpoint's weights by the names of a model's parameters; the model is not changed.

    Args:
        path: A checkpoint.
        model: The model that was fine-tuned.

    Raises:
        CheckpointError: If it cannot be read, lacks a weight, is of another model, or is not
            finite.
    """
    stored = _read(path)
    wanted = dict(model.named_parameters())
    prefix = _prefix(stored, wanted)
    if prefix is None:
        raise CheckpointError(
            f"{path} lacks weights of {type(model).__name__} such as {_lacking(stored, wanted)!r}; "
            "give checkpoints of this model's own fine-tuning, with all of its weights"
        )
    found = {name: stored[prefix + name] for name in wanted}
    for name, parameter in wanted.items():
        if found[name].shape != parameter.shape:
            raise CheckpointError(
                f"{path}: expected {name} of shape {tuple(parameter.shape)}, got "
                f"{tuple(found[name].shape)}; give checkpoints of this model's own fine-tuning"
            )
        if not bool(torch.isfinite(found[name]).all()):
            raise CheckpointError(
                f"{path}: expected finite weights, got NaN or infinity in {name}; the training has "
                "diverged: leave this checkpoint and the later ones out"
            )
    return found


def set_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Overwrite a model's parameters in place, cast to their types.

    Args:
        model: The model.
        weights: Values of all its parameters, by name.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".ckpt" if path.is_file() else (path / "config.json").is_file()


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(one), "") if one.isdigit() else (0, one) for one in re.split(r"(\d+)", name)]


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_file():
        content = read_checkpoint(path, _REMEDY)
        state = content.get("state_dict", content)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{path} holds no .safetensors file; {_REMEDY}")
    try:
        return {name: value for file in files for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); {_REMEDY}") from error


def _prefix(stored: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> str | None:
    """Return what stands before the parameters' names; ``None`` if they are not all there."""
    first = next(iter(wanted))
    for key in stored:
        if key.endswith(first) and all(key.removesuffix(first) + name in stored for name in wanted):
            return key.removesuffix(first)
    return None


def _lacking(stored: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> str:
    return next(
        (name for name in wanted if not any(key.endswith(name) for key in stored)),
        next(iter(wanted)),
    )
