"""Reading of checkpoints of tensors and plain values; a file of anything else runs no code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from lightning_edit.exceptions import CheckpointError


def require_file(path: Path, remedy: str) -> None:
    """Check that a path is a regular file; a pipe would be waited for.

    Args:
        path: The path.
        remedy: What to give instead.

    Raises:
        CheckpointError: If it is not.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: expected a file, got a folder; {remedy}")
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; {remedy}")
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a file, got a pipe or device; {remedy}")
    except (OSError, ValueError) as error:  # too long a name, a NUL in it, a folder not readable
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{str(path)!r} is no path of a file ({error}); {remedy}") from error


def read_checkpoint(path: Path, remedy: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by ``torch.save``, of tensors and plain values only.

    Args:
        path: The file.
        remedy: What to give instead, for the error message.
        map_location: Device of the tensors.

    Raises:
        CheckpointError: If it is not such a file: truncated, empty, of another program, or with
            Python objects, whose loading could run code.
    """
    require_file(path, remedy)
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty; {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd versions of pickle, before the error
            content = torch.load(path, map_location=map_location, weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint, or holds Python objects beside tensors and plain values; "
            f"it was not loaded, since that could run code. {_capital(remedy)}"
        ) from error
    except Exception as error:  # a damaged file raises any of twenty types
        raise CheckpointError(
            f"{path} is damaged or incomplete, or no checkpoint ({type(error).__name__}); {remedy}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a checkpoint, got a {type(content).__name__}; {remedy}"
        )
    return content


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
