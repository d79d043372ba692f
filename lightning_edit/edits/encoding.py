"""Tokenisation of edit requests: prompt ids, target ids, subject's last token."""

from collections.abc import Sequence
from typing import Any

from lightning_edit.exceptions import DataError
from lightning_edit.functional.tokens import encode_pair, subject_last_index
from lightning_edit.types import EditBatch, EditRequest, Encoded


def encode_request(tokenizer: Any, request: EditRequest) -> Encoded:
    """Tokenise a request's prompt and target together and find the subject's last token.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        request: The request.

    Returns:
        Its ids; ``subject_last`` is ``None`` where the request names no subject.

    Raises:
        DataError: If the target or the subject's last character has no token.
    """
    try:
        prompt_ids, target_ids = encode_pair(tokenizer, request.prompt, request.target)
        last = None
        if request.subject_end is not None:
            last = subject_last_index(tokenizer, request.prompt, request.subject_end)
    except ValueError as error:
        raise DataError(f"request {request.id}: {error}") from error
    return Encoded(tuple(prompt_ids), tuple(target_ids), last)


def encode_batch(tokenizer: Any, requests: Sequence[EditRequest], seed: int = 0) -> EditBatch:
    """Tokenise an edit batch: the requests that are written together.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        requests: At least one request.
        seed: Seed of everything random an editor does for this batch.

    Returns:
        The batch.

    Raises:
        DataError: If a request cannot be tokenised.
    """
    encoded = tuple(encode_request(tokenizer, request) for request in requests)
    return EditBatch(tuple(requests), encoded, seed)
