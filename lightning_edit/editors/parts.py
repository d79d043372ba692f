"""What an editor ships beside its edits: its arguments and its learned parts, as plain files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_edit.editors.arguments import describe_arguments
from lightning_edit.exceptions import CheckpointError
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.safetensors_files import to_safetensors

#: File of an editor's parameters and buffers in its folder of parts.
PARTS = "parts.safetensors"
_FORMAT = "lightning-edit-parts/1"


class EditorParts(nn.Module):
    """Arguments and learned parts of an editor, to write them to a folder and to read them back.

    A model with edits acts from the language model, the editor's arguments, its parts and the
    deltas in force alone, so this and the deltas are what ``export --format runtime`` ships.
    """

    arguments_in_parts: ClassVar[tuple[str, ...]] = ("checkpoint",)
    """Arguments that name what the parts hold, such as a file of trained parameters; they are
    shipped as ``None``, since a path means nothing on another machine."""

    def plain_arguments(self) -> dict[str, Any]:
        """Return the class name and the ``__init__`` arguments as plain JSON values.

        Arguments are read from attributes of the same name. An editor that keeps one under another
        name overrides :meth:`renamed_arguments`.

        Returns:
            ``class`` and ``args``; nested editors have the same form.

        Raises:
            ConfigError: If an argument is not kept, or is no plain value (number, text, list,
                mapping, request or editor).
        """
        replaced = dict.fromkeys(self.arguments_in_parts)
        return describe_arguments(self, {**self.renamed_arguments(), **replaced})

    def renamed_arguments(self) -> Mapping[str, Any]:
        """Return arguments that are kept under another name than their own, by argument."""
        return {}

    def save_parts(self, folder: Path) -> None:
        """Write the learned parts: by default parameters and buffers, nested editors included.

        What is learnt for single edits belongs to their deltas, and what a weight editor without
        training keeps of earlier edits follows from them, so neither is written. An editor with
        other parts, such as a second model or a collection of texts, overrides this together with
        :meth:`load_parts`; it writes safetensors, JSON and text files only.

        Args:
            folder: An existing, empty folder. Nothing is written if there are no parts.
        """
        if own := self._learnt():
            write_atomic(folder / PARTS, to_safetensors(own, {"format": _FORMAT}))

    def load_parts(self, folder: Path) -> None:
        """Read the learned parts that :meth:`save_parts` wrote; the editor is bound by then.

        Args:
            folder: The folder; there is none where nothing was saved.

        Raises:
            CheckpointError: If they are missing or damaged, or do not fit this editor by name,
                shape or dtype.
        """
        own, path = self._learnt(), folder / PARTS
        if not own and not path.exists():
            return
        found = read_parts(path)
        name = type(self).__name__
        if missing := sorted(own.keys() ^ found.keys()):
            where = "misses" if missing[0] in own else f"is not of this {name}: it has"
            raise CheckpointError(
                f"{path} {where} {', '.join(missing[:4])}; {name} holds "
                f"{', '.join(list(own)[:8]) or 'no parameters'}. Take the file of this editor with "
                "these arguments"
            )
        for key, value in own.items():
            if found[key].shape != value.shape or found[key].dtype != value.dtype:
                raise CheckpointError(
                    f"{path}: {key} is {_kind(found[key])}, but {name} expects {_kind(value)}; "
                    "bind it to the model and give it the arguments that it was saved with"
                )
        # Not strict: the extra state of a run, such as key histories, follows from the edits.
        self.load_state_dict(found, strict=False)

    def _learnt(self) -> dict[str, Tensor]:
        """Return copies of parameters and buffers; none if they are a history of edits alone."""
        editors: list[Any] = [one for one in self.modules() if isinstance(one, EditorParts)]
        if all(one.edits_weights and not one.needs_fit for one in editors):
            return {}
        state = self.state_dict()
        return {name: v.detach().clone() for name, v in state.items() if isinstance(v, Tensor)}


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def read_parts(path: Path) -> dict[str, Tensor]:
    """Read a file of parameters and buffers that :meth:`EditorParts.save_parts` wrote.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        CheckpointError: If there is no such file, it is not one, or holds NaN.
    """
    remedy = "export the editor again, or restore the folder as a whole"
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} is missing; {remedy}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); {remedy}") from error
    if header.get("format") != _FORMAT:
        found = header.get("format", "none")
        raise CheckpointError(f"{path}: expected format {_FORMAT}, got {found}; {remedy}")
    for name, value in tensors.items():
        if value.is_floating_point() and torch.isnan(value).any():
            raise CheckpointError(f"{path}: {name} holds NaN; {remedy}")
    return tensors
