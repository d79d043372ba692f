"""Cost of asking a model with edits that act at run time, beside the same model without them."""

import time
from collections.abc import Sequence

import torch

from lightning_edit.callbacks.base import EvalContext
from lightning_edit.edits.ledger import Ledger
from lightning_edit.edits.unedited import unedited
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder
from lightning_edit.metrics import RuntimeCost

#: Times that every question is asked; the fastest counts.
_ROUNDS = 2
_NEW_TOKENS = 8


def add_cost(metric: RuntimeCost, context: EvalContext, queries: int) -> None:
    """Measure what edits that act at run time keep, and what a query costs with them.

    Args:
        metric: Takes the cost.
        context: The model; nothing is measured without a run-time editor, or an edit in force.
        queries: Number of prompts of edits to ask, the newest ones.
    """
    ledger, responder = context.ledger, context.responder
    if ledger is None or ledger.runtime is None or responder is None or not len(ledger.in_force):
        return
    state, text = kept_bytes(ledger)
    metric.update(edits=len(ledger.request_ids), state_bytes=state, text_bytes=text)
    prompts = [request.prompt for request in context.requests[-queries:]] if queries else []
    questions = [Question(prompt, _NEW_TOKENS) for prompt in prompts]
    if not questions:
        return
    edited = [float("inf")] * len(questions)
    plain = list(edited)
    bare = None
    for _ in range(_ROUNDS):
        with unedited(ledger):
            bare = bare or ModelResponder(context.model, context.encoder)
            plain = [min(pair) for pair in zip(plain, _seconds(bare, questions), strict=True)]
        # The edits are installed anew here, so nothing that was found for these questions before
        # (texts, dialogues) is at hand. What serves all questions, an index, is made by another.
        responder.generate_until([Question(f"{prompts[0]} …", 1)])
        edited = [min(pair) for pair in zip(edited, _seconds(responder, questions), strict=True)]
    added = responder.added_tokens(questions)
    metric.update(
        queries=len(questions),
        seconds=sum(edited),
        unedited_seconds=sum(plain),
        added_tokens=None if added is None else sum(added),
    )


def kept_bytes(ledger: Ledger) -> tuple[int, int]:
    """Return the bytes of module state and of UTF-8 text that the edits in force keep.

    Args:
        ledger: The ledger; of a run on disk all deltas are read.
    """
    state = text = 0
    for delta in ledger.in_force:
        state += sum(one.numel() * one.element_size() for one in delta.state.values())
        text += sum(len(one.encode()) for one in delta.prompts.values())
    return state, text


def _seconds(responder: Responder, questions: Sequence[Question]) -> list[float]:
    """Ask questions one at a time, and return the wall time of each."""
    found = []
    for question in questions:
        _synchronize()
        begin = time.perf_counter()
        responder.generate_until([question])
        _synchronize()
        found.append(time.perf_counter() - begin)
    return found


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
