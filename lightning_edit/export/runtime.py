"""Export of edits that act at run time, from a run or from a handle, with a model card."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.unedited import unedited
from lightning_edit.exceptions import ExportError, ModelLoadError
from lightning_edit.export.card import TAGS, base_model, write_card
from lightning_edit.export.data_files import read_json
from lightning_edit.export.folder import atomic_folder
from lightning_edit.export.runtime_folder import (
    EDITOR,
    MODEL,
    Shippable,
    add_edits,
    copy_editor,
    write_editor,
)
from lightning_edit.export.selection import Selection
from lightning_edit.storage.run_folder import RunFolder

#: In the place of the name of a model that has none.
_NAMELESS = "path/to/the/unedited/model"


def export_edited(edited: EditedModel, folder: Path, overwrite: bool = False) -> Path:
    """Export the edits of a handle with their editor; ``edited.export`` in Python.

    Args:
        edited: The handle; its model has the same bits afterwards.
        folder: Folder to write, complete or not at all.
        overwrite: Whether to replace an earlier export there.

    Returns:
        The folder.

    Raises:
        ExportError: If no edit is in force, or something else lies there.
        ConfigError: If an argument of the editor is no plain value.
        ShippedEditsError: If the editor writes a part that may hold code.
    """
    ledger, editor = edited.ledger, edited.editor
    if not isinstance(editor, Shippable):
        raise ExportError(
            f"an export holds the editor, but this handle has {type(editor).__name__}; open the "
            "run with its editor: EditedModel.open(run, editor=...)"
        )
    if not ledger.request_ids:
        raise ExportError("no edit is in force, so there is nothing to export; edit or redo first")
    with atomic_folder(folder, overwrite) as part:
        with unedited(ledger):
            write_editor(part, editor)
        facts = read_json(part / MODEL)
        opening = {
            "editor": type(editor).__name__,
            "language_model": facts,
            "model": facts["hash"],
            "protocol": "edited in Python",
        }
        entries, deltas = tuple(ledger.in_force.entries), tuple(ledger.deltas)
        selection = Selection(folder, opening, entries, deltas, picked=False)
        add_edits(part, selection.deltas, selection.requests)
        write_runtime_card(part, folder.name, selection, str(facts["name"]))
    return folder


def write_runtime(folder: Path, selection: Selection) -> None:
    """Write edits of a run, with the editor that the run keeps, to a folder.

    Args:
        folder: An existing, empty folder.
        selection: The edits.

    Raises:
        ExportError: If the run keeps no editor.
        ShippedEditsError: If the run's files of it are missing or were changed.
    """
    kept = RunFolder(selection.run).editor
    if not (kept / EDITOR).is_file():
        raise ExportError(
            f"{selection.run} keeps no editor that acts at run time ({kept / EDITOR}): its editor "
            "changes weights, so use --format peft, merged or delta; or it has arguments that "
            "cannot be written down, as the run has warned"
        )
    copy_editor(kept, folder)
    add_edits(folder, selection.deltas, selection.requests)


def runtime_use(folder: Path, base: str) -> str:
    """Return Python code that loads an export; PATH is a placeholder for its folder.

    Args:
        folder: The written folder.
        base: Folder or hub name of the unedited model.
    """
    model = read_json(folder / MODEL)
    options = "" if model["dtype"] == "float32" else f", dtype={json.dumps(model['dtype'])}"
    options += ", add_bos=True" if model["bos"] else ""
    return (
        f"model, tokenizer = load_language_model({json.dumps(base or _NAMELESS)}{options})\n"
        "edited = load_edited(PATH, model, tokenizer)"
    )


def write_runtime_card(folder: Path, name: str, selection: Selection, base: str) -> None:
    """Write the model card of a run-time export.

    Args:
        folder: The written folder.
        name: Its final name.
        selection: The edits.
        base: Folder or hub name of the unedited model.
    """
    index: Mapping[str, Any] = read_json(folder / EDITOR)
    notes = [
        "The edits act when the model is asked; no weight of it changes.",
        "The folder holds data only (safetensors, JSON, text), no code and no pickle.",
    ]
    lines = ["from lightning_edit import load_edited, load_language_model", ""]
    if not index["module"].startswith("lightning_edit."):
        lines[:0] = [f"import {index['module']}  # defines the editor", ""]
        notes.append("The class of the editor is not part of lightning-edit.")
    lines.append(runtime_use(folder, base).replace("PATH", json.dumps(name)))
    if selection.requests:
        prompt = json.dumps(str(selection.requests[0]["prompt"]), ensure_ascii=False)
        lines.append(f"print(edited.generate({prompt}))")
    if any(delta.weights for delta in selection.deltas):
        notes[0] = "Loading writes the edits into the weights; `edited.undo()` takes them out."
    head: dict[str, object] = {"tags": TAGS, "library_name": "lightning-edit"}
    with suppress(ModelLoadError):  # a folder that is elsewhere now, or a model without a name
        head |= base_model(base)
    use = "\n".join(lines).replace("`", "\\x60")
    write_card(folder, selection, head, use, notes)
