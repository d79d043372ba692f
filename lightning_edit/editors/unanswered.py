"""Edits that are in force and not what the model answers: said where no run scores them."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning_edit.edits.delta import Delta
from lightning_edit.functional.scores import NLL_CAP
from lightning_edit.functional.visible import visible
from lightning_edit.inference.responder import Statement, TokenScores
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)

#: Most requests of a call that a warning names.
_NAMED = 3


def unanswered(
    editor: Any, requests: Sequence[EditRequest], in_force: Sequence[Delta]
) -> list[tuple[EditRequest, TokenScores]]:
    """Find the requests whose answer is not the model's likeliest continuation, token by token.

    The answer's own tokens decide, in the form (plain or chat; of both, chat) in which the edited
    model is asked; whether the model stops after them does not.

    Args:
        editor: The editor, bound; its edits are in force.
        requests: The requests.
        in_force: The edits in force.

    Returns:
        Each such request, with what the model says of its answer.
    """
    asked = [Statement(one.prompt, one.target, one.separator) for one in requests]
    scores = editor.responder(in_force).loglikelihood(asked)
    pairs = zip(requests, scores, strict=True)
    return [(one, score) for one, score in pairs if not score.is_greedy or _is_broken(score)]


def say_unanswered(
    editor: Any,
    requests: Sequence[EditRequest],
    written: Sequence[Delta],
    in_force: Sequence[Delta],
) -> None:
    """Log a warning that names edits without their effect, and what to turn.

    Args:
        editor: The editor, bound; its edits are in force.
        requests: The requests.
        written: Their deltas.
        in_force: All edits in force.
    """
    missing = unanswered(editor, requests, in_force)
    if not missing:
        return
    named = "; ".join(
        f"{one.id}: {one.prompt!r} → {one.target!r}, {_figure(score)}"
        for one, score in missing[:_NAMED]
    )
    more = "; …" if len(missing) > _NAMED else ""
    advice = editor.advice_on({one.id for one, _ in missing}, written)
    log.warning(
        "%d of %d edits are in force, but their answer is not the model's likeliest continuation "
        "(%s). %s",
        *(len(missing), len(requests), visible(named + more), advice),
    )


def _is_broken(score: TokenScores) -> bool:
    """Whether a token's score stands at the cap, as where the model's outputs are no numbers."""
    return max(score.nlls, default=0.0) >= NLL_CAP


def _figure(score: TokenScores) -> str:
    if _is_broken(score):
        return "impossible, or the model's outputs are not finite"
    return f"{score.total / max(1, len(score.tokens)):.2f} nats a token"
