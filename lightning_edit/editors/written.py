"""What an update writes, looked at before it is kept: asked by rules of strength."""

from collections.abc import Sequence

import torch

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.inference.answer_rows import AnswerRows, RowVerdicts
from lightning_edit.inference.answers import answer_logits
from lightning_edit.types import Encoded


@torch.no_grad()
def answers_with(editor: Editor, delta: Delta, encoded: Sequence[Encoded]) -> RowVerdicts:
    """Score the answers of requests with an update in place; the model is as it was afterwards.

    Args:
        editor: The editor, bound.
        delta: The update.
        encoded: Token ids of the requests.

    Returns:
        Verdicts of every request in each of its forms, teacher forced.
    """
    model = editor.language_model
    forms = [form for one in encoded for form in one.forms]
    pairs = [(one.prompt_ids, editor.prompts.labels(model, one.target_ids)) for one in forms]
    rows = AnswerRows.of(model, pairs)
    with delta.applied(model):
        logits = answer_logits(model, rows)
    return rows.verdicts(logits.to(torch.promote_types(logits.dtype, torch.float32)))
