"""Answer matching: when a generated text counts as an answer, after normalisation.

Texts are compared after :func:`normalise`, and an answer may be followed by further sentences but
by nothing else: see :func:`candidates`.
"""

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
# A mark that ends a sentence, with the brackets and quotes that close after it, before a space.
_SENTENCE_END = re.compile(r"""[.!?…][\])}"'»”’]*(?=\s|$)|[。！？][」』”’]*""")


def normalise(text: str) -> str:
    """Normalise a text for answer comparison.

    Unicode is folded (NFKC); case, punctuation and the English articles are dropped; dashes count
    as spaces, and spaces are single. A text that consists of nothing else keeps what it has.

    Args:
        text: Any text.

    Returns:
        Words with one space between them.

    Example:
        >>> normalise("The  U.S.") == normalise("us")
        True
        >>> normalise("Guinea-Bissau"), normalise("A")
        ('guinea bissau', 'a')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = []
    for letter in folded:
        category = unicodedata.category(letter)
        if category == "Pd":
            kept.append(" ")
        elif not category.startswith("P"):
            kept.append(letter)
    words = "".join(kept).split()
    without_articles = [word for word in words if word not in _ARTICLES]
    return " ".join(without_articles or words or folded.split())


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
    """Return whether a generated continuation matches one of the accepted answers.

    Args:
        continuation: Generated text without its prompt, one line.
        accepted: The answer and its aliases.

    Returns:
        Whether one of the :func:`candidates` equals one of the answers after :func:`normalise`.
    """
    wanted = {normalise(answer) for answer in accepted}
    return any(normalise(candidate) in wanted for candidate in candidates(continuation))
