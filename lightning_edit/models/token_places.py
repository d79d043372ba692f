"""Where answer and subject stand among the tokens of a text, by the tokens' character offsets."""

from collections.abc import Callable, Sequence

from lightning_edit.exceptions import DataError
from lightning_edit.models.prompt_format import RenderedPrompt


def answer_begin(
    prompt: str,
    answer: str,
    rendered: RenderedPrompt,
    offsets: Sequence[tuple[int, int]],
) -> int:
    """Return the index of an answer's first token.

    Args:
        prompt: The prompt, for the error message.
        answer: The answer.
        rendered: Prompt and answer as one text.
        offsets: Characters of each token, begin and end.

    Raises:
        DataError: If the answer has no token.
    """
    begin = rendered.answer_start
    first = next((i for i, (start, end) in enumerate(offsets) if end > max(begin, start)), None)
    if first is None or not answer.strip():
        raise DataError(
            f"the answer {answer!r} has no token after the prompt {prompt!r}; give it text"
        )
    # A token of the blank between prompt and answer is the answer's: the model must produce it.
    while first > 0 and rendered.prompt_end <= offsets[first - 1][0] < offsets[first - 1][1]:
        first -= 1
    # Where offsets are trimmed, those of the blank alone hold nothing.
    while first > 0 and rendered.prompt_end < offsets[first - 1][0] == offsets[first - 1][1]:
        first -= 1
    return first


def subject_span(
    prompt: str,
    subject: tuple[int, int],
    rendered: RenderedPrompt,
    tokens: Sequence[tuple[int, int, int]],
    decode: Callable[[Sequence[int]], str],
) -> tuple[int, int]:
    """Return the indices of a subject's first and last token.

    Args:
        prompt: The prompt.
        subject: Character offsets of the subject's begin and end in it.
        rendered: The prompt as the model reads it, with its answer if there is one.
        tokens: Token ids with their characters, begin and end.
        decode: Returns the text of token ids.

    Raises:
        DataError: If no token covers its first or last character.
    """
    begin, end = (place + rendered.shift for place in subject)
    covering = [
        [i for i, (_, start, stop) in enumerate(tokens) if start <= place < stop]
        or _behind_inserted_blank(rendered.text[place], place, tokens, decode)
        for place in (begin, end - 1)
    ]
    if not covering[0] or not covering[1]:
        raise DataError(
            f"no token of {prompt!r} covers the whole subject {prompt[slice(*subject)]!r}; the "
            "tokenizer drops a part of it, so the subject cannot be located"
        )
    return covering[0][0], covering[1][-1]


def _behind_inserted_blank(
    character: str,
    place: int,
    tokens: Sequence[tuple[int, int, int]],
    decode: Callable[[Sequence[int]], str],
) -> list[int]:
    """Return the token of a character that its offsets leave out; empty if there is none.

    Behind a special token some tokenizers put a blank in front of a word, and then take the word's
    first character for that blank.
    """
    return [
        number
        for number, (token, start, _) in enumerate(tokens)
        if start == place + 1 and decode([token]).lstrip().startswith(character)
    ][:1]
