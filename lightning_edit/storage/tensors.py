"""Atomic writes of tensors to safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.exceptions import StatisticsWriteError
from lightning_edit.storage.atomic import atomic_path
from lightning_edit.storage.safetensors_files import sort_header


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file atomically, with a sorted header.

    Args:
        path: The file; its folder is created.
        tensors: Tensors by name; tensors on an accelerator are copied to the CPU.
        header: Metadata of the file.

    Raises:
        StatisticsWriteError: If the write fails; an existing file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two runs may collect the same statistics at the same time.
        with atomic_path(path, several_writers=True) as part:
            save_file(
                {key: value.detach().contiguous().cpu() for key, value in tensors.items()},
                part,
                metadata=dict(header),
            )
            sort_header(part)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StatisticsWriteError(
            f"{path} cannot be written ({reason}); free some space there, or choose another "
            "folder with $LIGHTNING_EDIT_CACHE"
        ) from error
