"""From text to token ids: prompt, answer, and the subject's last token.

An answer follows its prompt after one space, and both are tokenised *together*: sentence-piece
tokenizers put the space into the first token of a word, and tokenising the pieces apart gives ids
that
the model never sees in running text.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a Hugging Face fast tokenizer."""

    is_fast: bool

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        """Return ``input_ids`` and, when asked for, ``offset_mapping``."""


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise TypeError(
            f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]  # type: ignore[arg-type, misc]  # offsets are pairs


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return a prompt's ids with the special tokens that the tokenizer adds (a BOS)."""
    return list(tokenizer(prompt, verbose=False)["input_ids"])


def encode_pair(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokenise ``prompt + " " + answer`` and split the ids where the answer begins.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Text before the answer; trailing spaces are dropped.
        answer: Text of the answer; surrounding spaces are dropped.

    Returns:
        The prompt's ids (with a BOS where the tokenizer adds one) and the answer's ids. A token
        that
        covers text of both counts to the answer. A token appended by the tokenizer (an EOS) is
        dropped.

    Raises:
        ValueError: If the answer has no token of its own.
    """
    prompt = prompt.rstrip()
    text = f"{prompt} {answer.strip()}"
    ids, offsets = _encode(tokenizer, text)
    ends = [(index, end) for index, (start, end) in enumerate(offsets) if end > start]
    first = next((index for index, end in ends if end > len(prompt) + 1), None)
    if first is None:
        raise ValueError(
            f"the answer {answer!r} has no token after the prompt {prompt!r}; give it text"
        )
    # A blank of its own ("▁") between prompt and answer is the answer's: the model must produce it.
    if first > 0 and offsets[first - 1] == (len(prompt), len(prompt) + 1):
        first -= 1
    return ids[:first], ids[first : ends[-1][0] + 1]


def subject_last_index(tokenizer: Tokenizer, prompt: str, subject_end: int) -> int:
    """Return the position of the token that holds the subject's last character.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Text that contains the subject.
        subject_end: Character offset just after the subject.

    Returns:
        Index into the ids of ``prompt``, special tokens counted.

    Raises:
        ValueError: If no token covers the subject's last character.
    """
    _, offsets = _encode(tokenizer, prompt)
    last = subject_end - 1
    for index, (start, end) in enumerate(offsets):
        if start <= last < end:
            return index
    raise ValueError(
        f"no token of {prompt!r} covers character {last}, the subject's last; "
        "the tokenizer drops it, so the subject cannot be located"
    )


def length_sorted(lengths: list[int], budget: int) -> list[list[int]]:
    """Group row numbers into batches of similar length.

    Args:
        lengths: Tokens of each row.
        budget: Rows a batch.

    Returns:
        Row numbers a batch, longest rows first so that a batch too large for memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + budget] for start in range(0, len(order), budget)]
