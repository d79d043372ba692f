"""Where a subject stands in a prompt: as a word, and of several places the last one."""

import unicodedata

from lightning_edit.types.scripts import is_joined


def subject_places(prompt: str, subject: str) -> list[int]:
    """Return the character offsets at which a subject stands in a prompt as a word.

    A word does not go on before or after it: "Rome" does not stand in "Romeo". Scripts without
    blanks have no such borders. Where the subject is only part of longer words (an inflected form),
    those places count.

    Args:
        prompt: The prompt.
        subject: The subject, spelled as in the prompt.

    Returns:
        Offsets in increasing order; empty if it is not in the prompt.

    Example:
        >>> subject_places("Rome and Romeo: Rome is", "Rome")
        [0, 16]
        >>> subject_places("東京都の知事は", "東京")
        [0]
    """
    if not subject:
        return []
    found, start = [], prompt.find(subject)
    while start >= 0:
        found.append(start)
        start = prompt.find(subject, start + 1)
    whole = [place for place in found if is_word(prompt, place, place + len(subject))]
    return whole or found


def locate_subject(prompt: str, subject: str) -> int | None:
    """Return where a subject stands in a prompt: the last place before the answer.

    Args:
        prompt: The prompt.
        subject: The subject, spelled as in the prompt.

    Returns:
        Its character offset; ``None`` if it is not there.
    """
    return next(reversed(subject_places(prompt, subject)), None)


def is_word(text: str, start: int, end: int) -> bool:
    """Return whether a part of a text stands there as a word, not inside a longer one.

    Args:
        text: The text.
        start: Character at which the part begins.
        end: Character behind its end.

    Example:
        >>> is_word("Rome is", 0, 4), is_word("Romeo is", 0, 4)
        (True, False)
    """
    return not _continues(text[start - 1 : start], text[start : start + 1]) and not _continues(
        text[end - 1 : end], text[end : end + 1]
    )


def _continues(before: str, after: str) -> bool:
    """Return whether two neighbouring characters belong to one word."""
    if not before or not after:
        return False
    if unicodedata.combining(after):
        return True
    return _in_word(before) and _in_word(after) and not (is_joined(before) or is_joined(after))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or bool(unicodedata.combining(character))
