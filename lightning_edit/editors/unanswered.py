"""Edits that are in force and not what the model answers: said where no run scores them."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from lightning_edit.editors.stronger import to_write_more
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.visible import visible
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Statement
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)

#: Most requests of a call that a warning names.
_NAMED = 3
#: Rows of a pass.
_ROWS = 64


def unanswered(
    editor: Any, batch: EditBatch, in_force: Sequence[Delta]
) -> list[tuple[EditRequest, float]]:
    """Find the requests whose answer is not the model's likeliest continuation, token by token.

    Args:
        editor: The editor, bound; its edits are in force.
        batch: The requests, tokenised.
        in_force: The edits in force.

    Returns:
        Each such request with its answer's mean negative log-likelihood a token, in nats; of
        several forms of its prompt (plain, chat) the worst.
    """
    responder = editor.responder(in_force)
    if type(responder) is ModelResponder:
        seen = _forms(editor, batch)
    else:  # an editor that answers in the model's place
        asked = [Statement(one.prompt, one.target, one.separator) for one in batch.requests]
        scores = responder.loglikelihood(asked)
        seen = [(score.is_greedy, score.total / max(1, len(score.tokens))) for score in scores]
    return [
        (request, nats)
        for request, (right, nats) in zip(batch.requests, seen, strict=True)
        if not right or nats != nats  # a broken model has no likeliest token
    ]


@torch.no_grad()
def _forms(editor: Any, batch: EditBatch) -> list[tuple[bool, float]]:
    """Score the tokens of a batch on the model as it is: whether all is right, and the worst."""
    model = editor.language_model
    owners, pairs = [], []
    for number, one in enumerate(batch.encoded):
        for form in one.forms:
            owners.append(number)
            pairs.append((form.prompt_ids, editor.prompts.labels(model, one.target_ids)))
    right, nats = [True] * len(batch), [0.0] * len(batch)
    for start in range(0, len(pairs), _ROWS):
        rows = AnswerRows.of(model, pairs[start : start + _ROWS])
        logits = answer_logits(model, rows)
        verdicts = rows.verdicts(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        found = zip(verdicts.right.tolist(), verdicts.nll.tolist(), strict=True)
        for owner, (is_right, nll) in zip(owners[start : start + _ROWS], found, strict=True):
            right[owner] &= is_right
            nats[owner] = max(nll, nats[owner])  # a NaN stays
    return list(zip(right, nats, strict=True))


def say_unanswered(editor: Any, batch: EditBatch, in_force: Sequence[Delta]) -> None:
    """Log a warning that names edits without their effect, and what to turn.

    Args:
        editor: The editor, bound; its edits are in force.
        batch: The requests, tokenised.
        in_force: The edits in force.
    """
    missing = unanswered(editor, batch, in_force)
    if not missing:
        return
    named = "; ".join(
        f"{one.id}: {one.prompt!r} → {one.target!r}, {nats:.2f} nats a token"
        for one, nats in missing[:_NAMED]
    )
    more = "; …" if len(missing) > _NAMED else ""
    log.warning(
        "%d of %d edits are in force, but their answer is not the model's likeliest continuation "
        "(%s). %s Take them back with undo().",
        *(len(missing), len(batch), visible(named + more), to_write_more(editor)),
    )
