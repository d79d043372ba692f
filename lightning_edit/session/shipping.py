"""Editors that act at run time: kept in the folder of their run, and loaded where they are used."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from lightning_edit.editors.base import Editor
from lightning_edit.editors.build import build_editor
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.exceptions import ConfigError, ShippedEditsError
from lightning_edit.export.data_files import REMEDY
from lightning_edit.export.folder import atomic_folder
from lightning_edit.export.runtime_folder import (
    EDITOR,
    MODEL,
    ShippedEdits,
    read_shipped,
    write_editor,
)
from lightning_edit.models.identity import describe_language_model, differences, sizes_hash
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.storage.run_folder import RunFolder

log = logging.getLogger(__name__)


def keep_editor(folder: RunFolder, editor: Editor) -> None:
    """Write an editor that acts at run time into its run's folder, once, before the first edit.

    A run can then be opened and exported without whatever the editor was made from.

    Args:
        folder: The run folder.
        editor: The run's editor, bound to the pristine model.
    """
    if editor.edits_weights:
        return
    if (folder.editor / EDITOR).exists():
        _require_seed(folder, editor)
        return
    try:
        editor.plain_arguments()
    except ConfigError as error:
        log.warning(
            "%s: this run can be opened only with its editor given, and not be exported as a "
            "whole: %s",
            folder.path,
            error,
        )
        return
    with atomic_folder(folder.editor) as part:
        write_editor(part, editor)


def _require_seed(folder: RunFolder, editor: Editor) -> None:
    """Refuse an editor that draws other masks than those with which a run's edits were made."""
    try:
        stored = json.loads((folder.editor / EDITOR).read_text(encoding="utf-8"))
        was, now = stored["editor"]["args"].get("seed"), getattr(editor, "seed", None)
    except (ValueError, KeyError):  # a damaged file is named where it is opened
        return
    if was is not None and was != now:
        raise ConfigError(
            f"{folder.path} was begun by {type(editor).__name__} with seed {was}, and this one has "
            f"{now} (--seed_everything is added to the editor's own); resume with the run's "
            "settings, or start a new run"
        )


def load_edited(
    folder: str | Path, model: nn.Module, tokenizer: Any, allow_other_model: bool = False
) -> EditedModel:
    """Load edits that ``export --format runtime`` or ``edited.export`` wrote, onto their model.

    Nothing in the folder is executed. The editor is a class of this library; one of your own has to
    be imported before.

    Args:
        folder: The folder.
        model: The unedited language model.
        tokenizer: Its fast tokenizer. Prompts get the format (chat template) of the edits.
        allow_other_model: Whether the weights may be others than those that were edited, in a model
            of the same architecture and sizes; edits that are texts alone (RAG, ICE, IKE) fit any.

    Returns:
        A handle with all edits in force: ``generate``, ``edit``, ``undo``, ``redo``.

    Raises:
        ShippedEditsError: If the folder is damaged, was changed, or does not fit the model or this
            installation. The model is unchanged.
    """
    shipped = read_shipped(Path(folder))
    try:
        editor = build_editor(shipped.editor, shipped.module)
    except ConfigError as error:
        raise ShippedEditsError(f"{shipped.folder / EDITOR}: {error}") from error
    prompts = _prompts(shipped, tokenizer)
    if allow_other_model:
        _require_sizes(shipped, model)
    else:
        _require_model(shipped, model, prompts)
    editor.bind(model, prompts)
    editor.load_parts(shipped.parts)
    edited = EditedModel(editor)
    editor.last_ledger = edited.ledger
    return edited.take(shipped.edits)


def _prompts(shipped: ShippedEdits, tokenizer: Any) -> PromptEncoder:
    """Return the tokenizer with the format of prompts in which the edits were made."""
    path = shipped.folder / MODEL
    try:
        form = PromptFormat.stored(shipped.model["prompts"])
    except (TypeError, ConfigError) as error:
        raise ShippedEditsError(f"{path}, `prompts`: {error}; {REMEDY}") from error
    if isinstance(tokenizer, PromptEncoder) and tokenizer.form != form:
        raise ShippedEditsError(
            f"the edits were made with prompts as {form.describe()}, but the given encoder reads "
            f"{tokenizer.form.describe()}; give the bare tokenizer"
        )
    return PromptEncoder(PromptEncoder.of(tokenizer).tokenizer, form)


def _require_sizes(shipped: ShippedEdits, model: nn.Module) -> None:
    """Check that tensors of edits have their places in a model of other weights."""
    tensors = [delta for delta, _ in shipped.edits if delta.weights or delta.state]
    if tensors and sizes_hash(model) != shipped.model["sizes"]:
        raise ShippedEditsError(
            f"the language model is of another architecture or size than {shipped.model['name']}, "
            f"which {shipped.folder} was made on, and its edits ({shipped.editor['class']}) hold "
            "tensors of that one's layers; give a model that differs from it in the values of its "
            "weights alone, or make the edits again on this one"
        )


def _require_model(shipped: ShippedEdits, model: nn.Module, prompts: PromptEncoder) -> None:
    found = differences(
        shipped.model, describe_language_model(model, prompts), made="the edits were made"
    )
    if found:
        raise ShippedEditsError(
            f"the language model is not the one of {shipped.folder}: {found}; give the unedited "
            f"{shipped.model['name']} as {shipped.model['dtype']}, or allow_other_model=True"
        )
