"""Edits that are in force and not what the model answers: said where no run scores them."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning_edit.edits.delta import Delta
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.functional.visible import visible
from lightning_edit.inference.responder import Statement, TokenScores
from lightning_edit.types import EditRequest

log = logging.getLogger(__name__)

#: Most requests of a call that a warning names.
_NAMED = 3
_OVERWRITTEN = (
    "later edits overwrite them. Write facts together, in one call, or take an editor that keeps "
    "earlier ones, such as MEMIT with keep_history, AlphaEdit or GRACE"
)
_LEARNT_ON_TOP = (
    "they were learnt on top of what was undone. Undo them and write them again, or redo what was "
    "undone"
)


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
    earlier: Sequence[EditRequest] = (),
) -> frozenset[str]:
    """Log a warning that names edits without their effect, and what to turn.

    Another one names earlier edits that were answered and are no longer.

    Args:
        editor: The editor, bound; its edits are in force.
        requests: The requests that were written last; none after an undo of others.
        written: Their deltas.
        in_force: All edits in force.
        earlier: Requests in force that were answered before.

    Returns:
        Ids of the requests, of both kinds, whose answer the model does not give.
    """
    found = unanswered(editor, [*requests, *earlier], in_force)
    before = {one.id for one in earlier}
    missing = [pair for pair in found if pair[0].id not in before]
    lost = [pair for pair in found if pair[0].id in before]
    if missing:
        advice = editor.advice_on({one.id for one, _ in missing}, written)
        log.warning(
            "%d of %d edits are in force, but their answer is not the model's likeliest "
            "continuation (%s). %s",
            *(len(missing), len(requests), _names(missing), advice),
        )
    if lost:
        log.warning(
            "%d of %d earlier edits that were looked at are in force, but the model no longer "
            "gives their answer (%s): %s",
            *(len(lost), len(earlier), _names(lost), _OVERWRITTEN if requests else _LEARNT_ON_TOP),
        )
    return frozenset(one.id for one, _ in found)


def _names(missing: Sequence[tuple[EditRequest, TokenScores]]) -> str:
    named = "; ".join(
        f"{one.id}: {one.prompt!r} → {one.target!r}, {_figure(score)}"
        for one, score in missing[:_NAMED]
    )
    return visible(named + ("; …" if len(missing) > _NAMED else ""))


def _is_broken(score: TokenScores) -> bool:
    """Whether a token's score stands at the cap, as where the model's outputs are no numbers."""
    return max(score.nlls, default=0.0) >= NLL_CAP


def _figure(score: TokenScores) -> str:
    if _is_broken(score):
        return "impossible, or the model's outputs are not finite"
    return f"{score.total / max(1, len(score.tokens)):.2f} nats a token"
