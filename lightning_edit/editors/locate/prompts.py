"""Tokenised prompts for target search and keys: requests in context templates, "{subject} is a".

Each request is prefixed with every context template, so that the subject's representation does not
depend on a single wording.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from lightning_edit.exceptions import DataError
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.prompt_encoder import EncodedPrompt, PromptEncoder, PromptText
from lightning_edit.types import EditBatch, EditRequest

KlPosition = Literal["subject_last", "prompt_end"]


def _fill_template(request: EditRequest, template: str) -> PromptText:
    """Return a request's prompt filled into a template, with its target and its subject."""
    start = template.index("{}")
    if request.subject_start is None or request.subject_end is None:
        raise ValueError(f"request {request.id} names no subject")
    prompt = template.replace("{}", request.prompt, 1)
    subject = start + request.subject_start, start + request.subject_end
    return PromptText(prompt, request.target, subject, request.separator, verbatim=start > 0)


def rewriting_texts(
    tokenizer: Any, batch: EditBatch, templates: Sequence[str]
) -> list[TokenizedText]:
    """Tokenise the rewriting prompts: every request in every context template, with its answer.

    With a chat template, request and context template stand together in the user's turn.

    Args:
        tokenizer: A prompt encoder, or a fast tokenizer for plain text.
        batch: Requests that name their subjects.
        templates: Texts with one ``{}``, the bare ``"{}"`` first.

    Returns:
        ``len(templates)`` texts per request, in the order of the batch.

    Raises:
        DataError: If a text cannot be tokenised, or is longer than the model takes.
    """
    encoder = PromptEncoder.of(tokenizer)
    leads = [encoder.lead(one[: one.index("{}")].rstrip()) for one in templates]
    placed = [_fill_template(request, one) for request in batch.requests for one in templates]
    texts = []
    for number, encoded in enumerate(_encode_or_explain(encoder, placed, batch, len(templates))):
        request, template = divmod(number, len(templates))
        assert encoded.subject_last is not None  # a subject was asked for
        lead = _common_prefix_length(encoded.prompt[: encoded.subject_last], leads[template])
        answer = encoder.learnt(encoded.answer)
        whole = encoded.prompt + answer[:-1]
        texts.append(TokenizedText(request, whole, encoded.subject_last, answer, lead=lead))
    return texts


def texts_in_forms(
    encoder: PromptEncoder, batch: EditBatch, templates: Sequence[str]
) -> list[TokenizedText]:
    """Tokenise the rewriting prompts in every form of the encoder; see :func:`rewriting_texts`.

    Args:
        encoder: With ``chat="both"``, every text is there in the chat template and plain.
        batch: Requests that name their subjects.
        templates: Texts with one ``{}``, the bare ``"{}"`` first.

    Returns:
        ``len(encoder.forms) * len(templates)`` texts per request, in the order of the batch; of
        each request the encoder's own form first.
    """
    size = len(templates)
    found = [rewriting_texts(form, batch, templates) for form in encoder.forms]
    return [
        text
        for start in range(0, size * len(batch), size)
        for texts in found
        for text in texts[start : start + size]
    ]


def _encode_or_explain(
    encoder: PromptEncoder, texts: Sequence[PromptText], batch: EditBatch, each: int
) -> Iterator[EncodedPrompt]:
    """Yield encoded texts; an error names the request, of which there are ``each`` texts."""
    done = 0
    try:
        for encoded in encoder.encode(texts):
            yield encoded
            done += 1
    except ValueError as error:
        raise DataError(f"request {batch.requests[done // each].id}: {error}") from error


def _common_prefix_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the length of the common prefix of two token sequences."""
    pairs = zip(ids, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def essence_texts(tokenizer: Any, batch: EditBatch, position: KlPosition) -> list[TokenizedText]:
    """Tokenise the KL prompts "{subject} is a" (essence), with the position that must not drift.

    Args:
        tokenizer: A prompt encoder, or a fast tokenizer for plain text.
        batch: Requests that name their subjects.
        position: ``subject_last``: as in the authors' code; the words after the subject then have
            no effect and are left out. ``prompt_end``: as in the paper.
    """
    encoder = PromptEncoder.of(tokenizer)
    placed = [
        PromptText(f"{request.subject} is a", subject=(0, len(str(request.subject))))
        for request in batch.requests
    ]
    texts = []
    for number, encoded in enumerate(_encode_or_explain(encoder, placed, batch, 1)):
        ids, subject = encoded.prompt, encoded.subject_last
        assert subject is not None  # a subject was asked for
        kept = ids[: subject + 1] if position == "subject_last" else ids
        texts.append(TokenizedText(number, kept, subject, watch=len(kept) - 1))
    return texts


def merge_watched(
    texts: Sequence[TokenizedText], watched: Sequence[TokenizedText]
) -> list[TokenizedText]:
    """Merge rewriting and KL texts, dropping a KL text that is a prefix of another one.

    A watched text that is a prefix of one of its request's texts, with the same subject position,
    has the same distribution there, because attention is causal.

    Args:
        texts: Texts with answers.
        watched: At most one text per request.

    Returns:
        All texts, grouped by request.
    """
    merged: list[TokenizedText] = list(texts)
    for text in watched:
        hosts = (
            index
            for index, host in enumerate(merged)
            if host.request == text.request
            and host.watch is None
            and host.subject == text.subject
            and host.ids[: len(text.ids)] == text.ids
        )
        host = next(hosts, None)
        if host is None:
            merged.append(text)
        else:
            old = merged[host]
            merged[host] = replace(old, watch=text.watch)
    return sorted(merged, key=lambda text: text.request)
