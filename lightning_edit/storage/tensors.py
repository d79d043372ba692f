"""Write tensors to a file that is there as a whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.exceptions import StatisticsWriteError
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
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        temporary = Path(name)
        os.close(handle)
        save_file(
            {key: value.detach().contiguous().cpu() for key, value in tensors.items()},
            temporary,
            metadata=dict(header),
        )
        order_header(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StatisticsWriteError(
            f"{path} cannot be written ({reason}); free some space there, or choose another "
            "folder with $LIGHTNING_EDIT_CACHE"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
