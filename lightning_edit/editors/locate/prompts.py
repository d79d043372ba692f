"""Tokenised prompts for target search and keys: requests in context templates, "{subject} is a".

Each request is prefixed with every context template, so that the subject's representation does not
depend on a single wording.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from lightning_edit.functional.tokens import (
    encode_pairs,
    encode_prompts,
    subject_last_indices,
)
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.types import EditBatch, EditRequest

KlPosition = Literal["subject_last", "prompt_end"]


def _fill_template(request: EditRequest, template: str) -> tuple[str, int]:
    """Return the prompt filled into a template, and the character offset after its subject."""
    start = template.index("{}")
    if request.subject_end is None:
        raise ValueError(f"request {request.id} names no subject")
    return template.replace("{}", request.prompt, 1), start + request.subject_end


def rewriting_texts(
    tokenizer: Any, batch: EditBatch, templates: Sequence[str]
) -> list[TokenizedText]:
    """Tokenise the rewriting prompts: every request in every context template, with its answer.

    Args:
        tokenizer: A fast tokenizer.
        batch: Requests that name their subjects.
        templates: Texts with one ``{}``, the bare ``"{}"`` first.

    Returns:
        ``len(templates)`` texts per request, in the order of the batch.
    """
    leads = encode_prompts(tokenizer, [one[: one.index("{}")].rstrip() for one in templates])
    placed = [_fill_template(request, one) for request in batch.requests for one in templates]
    targets = [request.target for request in batch.requests for _ in templates]
    prompts = [prompt for prompt, _ in placed]
    subjects = subject_last_indices(tokenizer, placed)
    pairs = encode_pairs(tokenizer, list(zip(prompts, targets, strict=True)))
    texts = []
    for number, ((ids, answer), subject) in enumerate(zip(pairs, subjects, strict=True)):
        request, template = divmod(number, len(templates))
        lead = _common_prefix_length(ids[:subject], leads[template])
        whole = tuple(ids + answer[:-1])
        texts.append(TokenizedText(request, whole, subject, tuple(answer), lead=lead))
    return texts


def _common_prefix_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the length of the common prefix of two token sequences."""
    pairs = zip(ids, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def essence_texts(tokenizer: Any, batch: EditBatch, position: KlPosition) -> list[TokenizedText]:
    """Tokenise the KL prompts "{subject} is a" (essence), with the position that must not drift.

    Args:
        tokenizer: A fast tokenizer.
        batch: Requests that name their subjects.
        position: ``subject_last``: as in the authors' code; the words after the subject then have
            no effect and are left out. ``prompt_end``: as in the paper.
    """
    prompts = [f"{request.subject} is a" for request in batch.requests]
    ends = [len(str(request.subject)) for request in batch.requests]
    subjects = subject_last_indices(tokenizer, list(zip(prompts, ends, strict=True)))
    texts = []
    encoded = encode_prompts(tokenizer, prompts)
    for number, (ids, subject) in enumerate(zip(encoded, subjects, strict=True)):
        kept = ids[: subject + 1] if position == "subject_last" else ids
        texts.append(TokenizedText(number, tuple(kept), subject, watch=len(kept) - 1))
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
