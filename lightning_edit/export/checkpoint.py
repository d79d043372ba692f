"""Export as a merged checkpoint: the full model with the edits in its weights."""

from pathlib import Path

from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import ExportError
from lightning_edit.export.selection import Selection
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.weights import weights_hash


def write_checkpoint(
    folder: Path, selection: Selection, model_name: str, trust_remote_code: bool = False
) -> None:
    """Write a merged checkpoint: the unedited model with the edits committed, and its tokenizer.

    Args:
        folder: Output folder.
        selection: The edits.
        model_name: Folder or hub name of the unedited model.
        trust_remote_code: Whether to run the Python code that the model brings.

    Raises:
        ExportError: If the model is not the one that was edited, or the edits act at run time.
        ModelLoadError: If the model cannot be loaded.
    """
    if any(delta.state or delta.prompts for delta in selection.deltas):
        raise ExportError(
            "these edits act at run time, not in weights, so no checkpoint can hold them; "
            "use --format runtime"
        )
    model, tokenizer = load_language_model(
        model_name, selection.language_model("dtype"), trust_remote_code=trust_remote_code
    )
    found = weights_hash(model)
    if found != selection.model_hash:
        raise ExportError(
            f"the weights of {model_name} (SHA-256 {found[:12]}…) are not those that the run "
            f"edited ({selection.model_hash[:12]}…); give the unedited model with --model"
        )
    ledger = Ledger(model)
    for delta in selection.deltas:
        ledger.commit(delta, ())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
