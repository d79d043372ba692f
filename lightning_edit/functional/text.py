"""Answer matching: when a generated text counts as an answer, after normalisation.

Three rules, from strict to lenient: the text *is* an answer (:func:`answers_match`), it *starts
with* one (:func:`starts_with_answer`), it *contains* one (:func:`contains_answer`). All compare
whole words of :func:`~lightning_edit.functional.words.words`.
"""

import re
import unicodedata
from collections.abc import Sequence

from lightning_edit.functional.words import Word, normalise, words

__all__ = [
    "answers_match",
    "candidates",
    "contains_answer",
    "first_line",
    "given_answers",
    "normalise",
    "same_answer",
    "starts_with_answer",
]

# A mark that ends a sentence, with the brackets and quotes that close after it, before a space.
_SENTENCE_END = re.compile(r"""[.!?…][\])}"'»”’*_]*(?=\s|$)|[。！？।॥؟۔።][」』”’]*""")


def first_line(text: str) -> str:
    """Truncate a continuation at its first line break, where models stop answering.

    Args:
        text: A continuation; blank lines before the first text are skipped.
    """
    return text.strip().split("\n", 1)[0].strip()


def candidates(continuation: str) -> list[str]:
    """Return candidate answers of a continuation: itself, and every prefix that ends a sentence.

    Stopping at the first full stop alone would turn "U.S. law" into "U"; taking every sentence end
    loses no answer, and a wrong word before it still counts as wrong.

    Args:
        continuation: Generated text without its prompt, one line.

    Returns:
        Prefixes, shortest first.

    Example:
        >>> candidates("Washington, D.C. It lies on the Potomac")
        ['Washington, D.C.', 'Washington, D.C. It lies on the Potomac']
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(continuation)]
    prefixes = [continuation[:end] for end in ends if end < len(continuation)]
    return [*prefixes, continuation]


def answers_match(continuation: str, accepted: Sequence[str]) -> bool:
    """Return whether a generated continuation is one of the accepted answers and nothing else.

    Further sentences may follow, see :func:`candidates`.

    Args:
        continuation: Generated text without its prompt, one line.
        accepted: The answer and its aliases.

    Returns:
        Whether one of the :func:`candidates` equals one of the answers after :func:`normalise`.
    """
    wanted = {normalise(answer) for answer in accepted}
    return any(normalise(candidate) in wanted for candidate in candidates(continuation))


def starts_with_answer(continuation: str, accepted: Sequence[str]) -> bool:
    """Return whether a continuation starts with an accepted answer, whatever follows it.

    Args:
        continuation: Generated text without its prompt.
        accepted: The answer and its aliases.

    Example:
        >>> starts_with_answer("Rome, Italy. The Eiffel Tower", ["Rome"])
        True
        >>> starts_with_answer("Romeo", ["Rome"]), starts_with_answer("1.5", ["1"])
        (False, False)
    """
    return bool(given_answers(continuation, accepted))


def given_answers(continuation: str, accepted: Sequence[str]) -> frozenset[str]:
    """Return the accepted answers that a continuation starts with, normalised.

    An answer counts if its words are the first words of the text, and the last of them does not go
    on behind a hyphen ("Guinea" is not given by "Guinea-Bissau"); also if the text gives it by the
    strict rule of :func:`answers_match`. Bullets and other signs in front are skipped.

    Args:
        continuation: Generated text without its prompt.
        accepted: The answer and its aliases.
    """
    text = _from_first_word(words(continuation))
    found = set()
    for answer in accepted:
        wanted = _from_first_word(words(answer))
        size = len(wanted)
        whole = 0 < size <= len(text) and not text[size - 1].hyphenated
        first = whole and _texts(text[:size]) == _texts(wanted)
        if first or answers_match(continuation, [answer]):
            found.add(normalise(answer))
    return frozenset(found)


def contains_answer(continuation: str, accepted: Sequence[str]) -> bool:
    """Return whether a continuation contains an accepted answer anywhere, as whole words in order.

    Unlike in :func:`given_answers` a hyphen ends a word: "a Rome-based firm" contains "Rome".

    Args:
        continuation: Generated text without its prompt.
        accepted: The answer and its aliases.

    Example:
        >>> contains_answer("It is Rome, of course", ["Rome"]), contains_answer("Romeo", ["Rome"])
        (True, False)
    """
    text = _texts(words(continuation))
    for answer in accepted:
        wanted = _texts(words(answer))
        places = range(len(text) - len(wanted) + 1) if wanted else ()
        if any(text[place : place + len(wanted)] == wanted for place in places):
            return True
    return starts_with_answer(continuation, accepted)


def same_answer(first: str, second: str, accepted: Sequence[str]) -> bool:
    """Return whether two continuations of one prompt give the same answer.

    If at least one of them starts with an accepted answer, the other must start with it too, or
    contain it as whole words: a model that answers in sentences keeps its answer in other words.
    Otherwise neither answer is known, and their first n words must agree, with n the number of
    words of the longest accepted answer.

    Args:
        first: Generated text without its prompt.
        second: Another one.
        accepted: The answer and its aliases.

    Example:
        >>> same_answer("Rome. It is old", "Rome, Italy", ["Rome"])
        True
        >>> same_answer("Rome", "The capital is Rome.", ["Rome"])
        True
        >>> same_answer("Rome", "Paris", ["Rome"]), same_answer("in Paris", "in Lyon", ["New York"])
        (False, False)
    """
    given = [given_answers(text, accepted) for text in (first, second)]
    if given[0] & given[1]:
        return True
    if any(given):
        texts = (second, first)
        return any(
            contains_answer(text, [answer])
            for text, answers in zip(texts, given, strict=True)
            for answer in answers
        )
    size = max(len(words(answer)) for answer in accepted)
    begins = [_texts(_from_first_word(words(text))[:size]) for text in (first, second)]
    return begins[0] == begins[1]


def _texts(found: Sequence[Word]) -> tuple[str, ...]:
    return tuple(word.text for word in found)


def _from_first_word(found: Sequence[Word]) -> Sequence[Word]:
    """Drop signs in front of the first word that has a letter or digit, if there is one."""
    for place, word in enumerate(found):
        if any(unicodedata.category(letter)[0] in "LN" for letter in word.text):
            return found[place:]
    return found
