"""Checkpoint of a trained editor: parameters, and the arguments to rebuild its network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_edit.exceptions import CheckpointError
from lightning_edit.models.weights import Weight
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.checkpoint_file import read_checkpoint, require_file
from lightning_edit.storage.safetensors_files import to_safetensors

_FORMAT = "lightning-edit-editor/1"
_REMEDY = (
    "give the checkpoint that `lightning-edit fit` wrote (checkpoints/last.ckpt in its run folder)"
)
#: Key of an edit session's state in its checkpoints.
SESSION = "lightning_edit_session"


@dataclass(frozen=True)
class EditorCheckpoint:
    """Checkpoint of a trained editor: state dict, edited weights and architecture arguments.

    Args:
        editor: Class name of the editor.
        shapes: Shape (d_out, d_in) of every edited weight, by parameter name, in order.
        arguments: Arguments that define the network's sizes.
        state: The state dict.
        language_model: The language model it was trained on, as described by
            :mod:`lightning_edit.models.identity`; empty in checkpoints of earlier versions.
    """

    KEY: ClassVar[str] = "lightning_edit_editor"
    """Key of :meth:`header` in a Lightning checkpoint."""

    editor: str
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    language_model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modules(self) -> list[str]:
        """Dotted names of the edited layers."""
        return [name.removesuffix(".weight") for name in self.shapes]

    def header(self) -> dict[str, Any]:
        """Return the checkpoint's metadata (all but the parameters), as plain containers."""
        return {
            "format": _FORMAT,
            "editor": self.editor,
            "shapes": [[name, list(shape)] for name, shape in self.shapes.items()],
            "arguments": dict(self.arguments),
            "language_model": dict(self.language_model),
        }

    def weights(self) -> tuple[Weight, ...]:
        """Return the edited weights without values, to build a network before a model is bound."""
        return tuple(
            Weight(name, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
            for name, shape in self.shapes.items()
        )

    def write(self, path: Path) -> None:
        """Write the checkpoint as a safetensors file.

        Args:
            path: The file; :meth:`read` recognises it by the suffix ``.safetensors``.
        """
        write_atomic(path, to_safetensors(self.state, {self.KEY: json.dumps(self.header())}))

    @classmethod
    def read(cls, path: Path) -> "EditorCheckpoint":
        """Read a Lightning checkpoint of an editor, or a file from :meth:`write`.

        Args:
            path: The file.

        Raises:
            CheckpointError: If there is no such file, or it holds no trained editor.
        """
        require_file(path, _REMEDY)
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as file:
                    header = json.loads((file.metadata() or {}).get(cls.KEY, "{}"))
                    names = file.keys()
                    state = {name: file.get_tensor(name) for name in names}
                content = {cls.KEY: header, "state_dict": state}
            else:
                content = read_checkpoint(path, _REMEDY)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint of tensors and plain values "
                f"({type(error).__name__}); give a .ckpt of `lightning-edit fit` or a .safetensors "
                "of `save_weights`"
            ) from error
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], source: str) -> "EditorCheckpoint":
        """Take the editor from the content of a Lightning checkpoint.

        Args:
            content: Lightning's dictionary.
            source: Where it comes from, for the error message.

        Raises:
            CheckpointError: If it holds no trained editor.
        """
        if SESSION in content:
            raise CheckpointError(
                f"{source} is the position of an edit run, which holds no trained editor; the run "
                'is opened in Python with EditedModel.open("RUN"), continued with `lightning-edit '
                "resume RUN` and shipped with `lightning-edit export RUN`"
            )
        header = content.get(cls.KEY, {})
        found = header.get("format", "none") if isinstance(header, dict) else "none"
        if found != _FORMAT:
            raise CheckpointError(
                f"{source}: expected a trained editor ({_FORMAT}), got {found}; give a checkpoint "
                "of a trained editor"
            )
        try:
            shapes = {name: tuple(shape) for name, shape in header["shapes"]}
            return cls(
                header["editor"],
                shapes,
                dict(header["arguments"]),
                dict(content.get("state_dict", {})),
                dict(header.get("language_model", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}: its description of the editor is damaged ({error!r}); {_REMEDY}"
            ) from error

    def restore_arguments(self, editor: nn.Module, names: tuple[str, ...]) -> None:
        """Set an editor's architecture arguments to those of the checkpoint.

        Args:
            editor: An editor whose network is not built yet.
            names: The arguments that define the network's sizes.

        Raises:
            CheckpointError: If the file belongs to another editor class.
        """
        if self.editor != type(editor).__name__:
            raise CheckpointError(
                f"the checkpoint holds a trained {self.editor}, not a {type(editor).__name__}; "
                f"use --model {self.editor}, or give a checkpoint of {type(editor).__name__}"
            )
        for name in names:
            setattr(editor, name, self.arguments[name])

    def load_into(self, editor: nn.Module) -> None:
        """Load the parameters and buffers (state dict) into an editor.

        Args:
            editor: The editor, with its network built.

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
