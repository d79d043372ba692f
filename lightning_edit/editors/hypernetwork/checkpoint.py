"""Trained parameters of an editor on disk, with what is needed to build its network again."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_edit.exceptions import CheckpointError
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.safetensors_files import to_safetensors

_FORMAT = "lightning-edit-editor/1"


@dataclass(frozen=True)
class EditorCheckpoint:
    """Parameters and buffers of a trained editor, and what they were trained for.

    Args:
        editor: Class name of the editor.
        shapes: Shape (d_out, d_in) of every weight it edits, by parameter name, in its order.
        arguments: Arguments that give its network its sizes.
        state: Its state dict.
    """

    KEY: ClassVar[str] = "lightning_edit_editor"
    """Entry of a Lightning checkpoint that holds :meth:`header`."""

    editor: str
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """Dotted names of the edited layers."""
        return [name.removesuffix(".weight") for name in self.shapes]

    def header(self) -> dict[str, Any]:
        """Everything but the parameters, as plain containers."""
        return {
            "format": _FORMAT,
            "editor": self.editor,
            "shapes": [[name, list(shape)] for name, shape in self.shapes.items()],
            "arguments": dict(self.arguments),
        }

    def write(self, path: Path) -> None:
        """Write a safetensors file.

        Args:
            path: The file; :meth:`read` knows it by its ending ``.safetensors``.
        """
        write_atomic(path, to_safetensors(self.state, {self.KEY: json.dumps(self.header())}))

    @classmethod
    def read(cls, path: Path) -> "EditorCheckpoint":
        """Read a Lightning checkpoint of an editor, or what :meth:`write` wrote.

        Args:
            path: The file.

        Raises:
            CheckpointError: If there is no such file, or it holds no trained editor.
        """
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; give the checkpoint that `lightning-edit fit` wrote "
                "(checkpoints/last.ckpt in its run folder)"
            )
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as file:
                    header = json.loads((file.metadata() or {}).get(cls.KEY, "{}"))
                    names = file.keys()
                    state = {name: file.get_tensor(name) for name in names}
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
                content = content if isinstance(content, dict) else {}
                header, state = content.get(cls.KEY, {}), content.get("state_dict", {})
        except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint of tensors and plain values "
                f"({type(error).__name__}); give a .ckpt of `lightning-edit fit` or a .safetensors "
                "of `save_weights`"
            ) from error
        if header.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path}: expected a trained editor ({_FORMAT}), got "
                f"{header.get('format', 'none')}; give a checkpoint of a trained editor"
            )
        shapes = {name: tuple(shape) for name, shape in header["shapes"]}
        return cls(header["editor"], shapes, header["arguments"], state)

    def restore_arguments(self, editor: nn.Module, names: tuple[str, ...]) -> None:
        """Give an editor the sizes that the stored network has.

        Args:
            editor: An editor whose network is not built yet.
            names: The arguments that shape it.

        Raises:
            CheckpointError: If the file is of another class of editor.
        """
        if self.editor != type(editor).__name__:
            raise CheckpointError(
                f"the checkpoint holds a trained {self.editor}, not a {type(editor).__name__}; "
                f"use --model {self.editor}, or give a checkpoint of {type(editor).__name__}"
            )
        for name in names:
            setattr(editor, name, self.arguments[name])

    def load_into(self, editor: nn.Module) -> None:
        """Load the parameters and buffers.

        Args:
            editor: The editor, its network built.

        Raises:
            CheckpointError: If a name or shape does not fit.
        """
        try:
            editor.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint does not fit {type(editor).__name__}: {error}; "
                "it was written by another version, so train again with `lightning-edit fit`"
            ) from error
