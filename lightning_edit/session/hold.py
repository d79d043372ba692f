"""A model whose deltas were made elsewhere, in memory or with a run folder.

Public as ``EditedModel.of(model, tokenizer)``.
"""

from pathlib import Path
from typing import Any

from lightning_edit.editors.base import Editor
from lightning_edit.editors.no_editor import NoEditor
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.run_journal import OWN
from lightning_edit.exceptions import LedgerError
from lightning_edit.session.describe import describe_for_journal
from lightning_edit.session.open import EditedRun
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.storage.run_lock import run_lock


def hold_model(model: Any, tokenizer: Any, run: str | Path | None = None) -> EditedModel:
    """Return a handle for a model without an editor; see :meth:`EditedModel.of`.

    Args:
        model: The unedited language model.
        tokenizer: Its fast tokenizer, or a prompt encoder.
        run: New folder for the journal; ``None``: in memory only.

    Raises:
        LedgerError: If the folder holds a run already.
    """
    holder: Editor = NoEditor()
    holder.bind(model, tokenizer)
    if run is None:
        return EditedModel(holder)
    folder = RunFolder(run)
    with run_lock(folder.path):
        if folder.has_run:
            raise LedgerError(
                f"{folder.path} holds edits already; open them with EditedModel.open("
                "run, language_model=(model, tokenizer)), or give another folder"
            )
        ledger = Ledger(model, holder, folder.ledger)
        ledger.open(
            editor=type(holder).__name__,
            language_model=describe_for_journal(model, holder.prompts),
            protocol=OWN,
        )
    return EditedRun(folder.path, ledger, holder.prompts, holder)
