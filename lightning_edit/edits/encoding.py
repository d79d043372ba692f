"""Tokenisation of edit requests: prompt ids, target ids, subject's last token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_edit.exceptions import DataError
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.types import EditBatch, EditRequest, Encoded


def request_text(request: EditRequest) -> PromptText:
    """Return a request's prompt, target and subject as a text to encode.

    Args:
        request: The request.
    """
    subject = None
    if request.subject_start is not None and request.subject_end is not None:
        subject = request.subject_start, request.subject_end
    return PromptText(request.prompt, request.target, subject, request.separator)


def encode_batch(tokenizer: Any, requests: Sequence[EditRequest], seed: int = 0) -> EditBatch:
    """Tokenise an edit batch: the requests that are written together.

    Args:
        tokenizer: A :class:`~lightning_edit.models.prompt_encoder.PromptEncoder`, or a fast
            tokenizer for plain text.
        requests: At least one request.
        seed: Seed of everything random an editor does for this batch.

    Returns:
        The batch.

    Raises:
        DataError: If there is no request, or one cannot be tokenised.
    """
    if not requests:
        raise DataError("there are no requests to edit; give at least one")
    first, *others = [_encode(form, requests) for form in PromptEncoder.of(tokenizer).forms]
    for other in others:
        first = [replace(one, plain=plain) for one, plain in zip(first, other, strict=True)]
    return EditBatch(tuple(requests), tuple(first), seed)


def _encode(encoder: PromptEncoder, requests: Sequence[EditRequest]) -> list[Encoded]:
    """Tokenise requests in one form; an error names the request."""
    encoded: list[Encoded] = []
    try:
        for one in encoder.encode(request_text(request) for request in requests):
            _refuse_special(encoder.tokenizer, requests[len(encoded)].target, one.answer)
            encoded += [Encoded(one.prompt, encoder.learnt(one.answer), one.subject_last)]
    except ValueError as error:
        raise DataError(f"request {requests[len(encoded)].id}: {error}") from error
    return encoded


def _refuse_special(tokenizer: Any, target: str, ids: Sequence[int]) -> None:
    """Refuse a target with the text of a special token, which is never part of an answer."""
    special = set(getattr(tokenizer, "all_special_ids", ())) & set(ids)
    named = [one for one in map(tokenizer.decode, sorted(special)) if one in target]
    if named:
        raise ValueError(
            f"the target {target!r} holds the special token {named[0]!r}, which stands for no text "
            "and is never part of an answer; write the answer alone"
        )
