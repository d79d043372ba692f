"""Reading of Lightning checkpoints with errors that say in one sentence what to do."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_edit.exceptions import CheckpointError
from lightning_edit.storage.checkpoint_file import read_checkpoint

_REMEDY = (
    "give a checkpoint of this run (checkpoints/last.ckpt); without one, start the run again in a "
    "new folder"
)


class PlainCheckpointIO(TorchCheckpointIO):
    """Checkpoint files as Lightning writes them; what is read holds tensors and plain values."""

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            path: The file.
            map_location: Device of its tensors.
            weights_only: Not used: Python objects are never loaded.

        Returns:
            Lightning's dictionary.

        Raises:
            CheckpointError: If it cannot be read, or is not Lightning's.
        """
        content = read_checkpoint(Path(path), _REMEDY, map_location)
        if missing := {"pytorch-lightning_version", "state_dict"} - set(content):
            raise CheckpointError(
                f"{path} is a checkpoint of another program (it has no {sorted(missing)[0]}); "
                f"{_REMEDY}"
            )
        return content


def use_plain_checkpoints(trainer: pl.Trainer) -> None:
    """Let a trainer read checkpoints with :class:`PlainCheckpointIO`.

    Args:
        trainer: The trainer; a checkpoint plugin that the user has chosen is kept.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = PlainCheckpointIO()
