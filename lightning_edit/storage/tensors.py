"""Write tensors to a file that is there as a whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.exceptions import StatisticsWriteError
from lightning_edit.storage.atomic import replacing
from lightning_edit.storage.safetensors_files import order_header


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file beside its place and move it there.

    Args:
        path: The file; its folder is made.
        tensors: By name; those on an accelerator are copied.
        header: Its metadata.

    Raises:
        StatisticsWriteError: If the disk refuses; a file that was there stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two runs may collect the same statistics.
        with replacing(path, several_writers=True) as part:
            save_file(
                {key: value.detach().contiguous().cpu() for key, value in tensors.items()},
                part,
                metadata=dict(header),
            )
            order_header(part)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StatisticsWriteError(
            f"{path} cannot be written ({reason}); free some space there, or choose another "
            "folder with $LIGHTNING_EDIT_CACHE"
        ) from error
