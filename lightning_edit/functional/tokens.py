"""Tokenization of prompts and answers, and the position of the subject's last token.

An answer follows its prompt after one space, and both are tokenised *together*: sentence-piece
tokenizers put the space into the first token of a word, and tokenising them separately gives ids
that the model never sees in running text.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Fast tokenizer of Hugging Face, as far as it is needed here."""

    is_fast: bool

    def __call__(self, text: str | list[str], **options: object) -> dict[str, Any]:
        """Return ``input_ids`` and, when asked for, ``offset_mapping``."""


Encoded = tuple[list[int], list[tuple[int, int]]]
"""Token ids of a text, and the character offsets of each."""


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    if not tokenizer.is_fast:
        raise TypeError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    if not texts:
        return []
    encoded = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    return [
        (list(ids), [tuple(pair) for pair in offsets])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Tokenise prompts, with the special tokens that the tokenizer adds (a BOS)."""
    return list(tokenizer(list(prompts), verbose=False)["input_ids"]) if prompts else []


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Tokenise one prompt, with the special tokens that the tokenizer adds (a BOS)."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode_pair(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokenise ``prompt + " " + answer`` and split the ids where the answer begins.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Text before the answer; trailing spaces are dropped.
        answer: Text of the answer; surrounding spaces are dropped.

    Returns:
        The prompt's ids (with a BOS where the tokenizer adds one) and the answer's ids. A token
        that covers text of both belongs to the answer. A token appended by the tokenizer (an EOS)
        is dropped.

    Raises:
        ValueError: If the answer has no token of its own.
    """
    return next(encode_pairs(tokenizer, [(prompt, answer)]))


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], list[int]]]:
    """Tokenise many prompts with their answers; see :func:`encode_pair`.

    Args:
        tokenizer: A fast tokenizer.
        pairs: Prompts and answers.

    Yields:
        The ids of each prompt and of its answer.

    Raises:
        ValueError: On reaching an answer that has no token of its own.
    """
    texts = [f"{prompt.rstrip()} {answer.strip()}" for prompt, answer in pairs]
    for (prompt, answer), (ids, offsets) in zip(pairs, _encode(tokenizer, texts), strict=True):
        yield _split_answer(prompt.rstrip(), answer, ids, offsets)


def _split_answer(
    prompt: str, answer: str, ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    ends = [(index, end) for index, (start, end) in enumerate(offsets) if end > start]
    first = next((index for index, end in ends if end > len(prompt) + 1), None)
    if first is None:
        raise ValueError(
            f"the answer {answer!r} has no token after the prompt {prompt!r}; give it text"
        )
    # A space token ("▁") between prompt and answer is the answer's: the model must produce it.
    if first > 0 and offsets[first - 1] == (len(prompt), len(prompt) + 1):
        first -= 1
    return ids[:first], ids[first : ends[-1][0] + 1]


def subject_last_index(tokenizer: Tokenizer, prompt: str, subject_end: int) -> int:
    """Return the position of the subject's last token: it holds the subject's last character.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Text that contains the subject.
        subject_end: Character offset just after the subject.

    Returns:
        Index into the ids of ``prompt``, special tokens counted.

    Raises:
        ValueError: If no token covers the subject's last character.
    """
    return subject_last_indices(tokenizer, [(prompt, subject_end)])[0]


def subject_last_indices(tokenizer: Tokenizer, places: Sequence[tuple[str, int]]) -> list[int]:
    """Return the positions of the subjects' last tokens in many texts.

    Args:
        tokenizer: A fast tokenizer.
        places: Texts, and the character offset just after the subject in each.

    Returns:
        As of :func:`subject_last_index`.

    Raises:
        ValueError: If no token covers a subject's last character.
    """
    encoded = _encode(tokenizer, [prompt for prompt, _ in places])
    return [
        _token_at(prompt, offsets, end - 1)
        for (prompt, end), (_, offsets) in zip(places, encoded, strict=True)
    ]


def _token_at(prompt: str, offsets: Sequence[tuple[int, int]], last: int) -> int:
    for index, (start, end) in enumerate(offsets):
        if start <= last < end:
            return index
    raise ValueError(
        f"no token of {prompt!r} covers character {last}, the subject's last; "
        "the tokenizer drops it, so the subject cannot be located"
    )


def length_sorted(lengths: list[int], budget: int) -> list[list[int]]:
    """Batch row numbers by length, so that rows of a batch need little padding.

    Args:
        lengths: Tokens of each row.
        budget: Rows per batch.

    Returns:
        Row numbers per batch, longest rows first so that a batch too large for memory fails at
        once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + budget] for start in range(0, len(order), budget)]
