"""Text normalisation for answer comparison: the words of a text, in any script.

What writers may vary is dropped (case, quotes, articles, full stops of abbreviations, thousands
separators, optional vowel points), and what changes the meaning stays (digits, signs, decimal
points, times, fractions, accents, ``#`` and ``+`` behind a letter). The rules stand in
``docs/metrics.md``.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_ARTICLES = frozenset({"a", "an", "the"})
#: Internal sign of a hyphen between two words: "Guinea‐Bissau".
_HYPHEN = "\u2010"
#: Dropped inside a word: apostrophes, the middle dots of Catalan and Katakana, Hebrew gershayim.
_DROPPED = frozenset("'·‧・゠״׳")
#: Kept between two digits: decimal points, times, fractions, dates, feet and inches.
_BETWEEN_DIGITS = frozenset(".,:/'*-")
_UNIT_SIGNS = frozenset("%‰")
_DASHES = "\u2010\u2011\u2012\u2013\u2212\u05be"
_LONG_DASHES = "\u2014\u2015\u2e3a\u2e3b"
_SPELLINGS = str.maketrans(
    dict.fromkeys("‘’‛ʼʻ′´`", "'")
    | dict.fromkeys(_DASHES, "-")
    | dict.fromkeys(_LONG_DASHES, "\u2014")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"٫": ".", "٬": ",", "٪": "%"}
)
#: Optional vowel points of Arabic and Hebrew, the Arabic tatweel, and variation selectors.
_OPTIONAL = re.compile(
    "[\u064b-\u0652\u0670\u0640\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
#: Letters of scripts that are written without blanks between words, except Katakana.
_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3100-\u312f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a0-\u30ff\u31f0-\u31ff]")
_SENTENCE_BREAK = re.compile(r"(?<=[a-z])\.(?=[A-Z](?:[a-z]|\s))")
_NARROW_GROUPS = re.compile("(?<=[0-9])[\u00a0\u2007\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_EXPONENT = re.compile("(?<=[0-9])[⁺⁻]?[⁰¹²³⁴-⁹]+")
_FRACTION_SIGN = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞↉])")
_THOUSANDS = re.compile(
    r"(?<![0-9])(?<![0-9][.,'])"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})"
    r"(?![0-9]|[,'][0-9])"
)
_MIXED_NUMBER = re.compile(r"(?<![\w/.,:+'-])([0-9]+) (?=[0-9]+/[0-9]+(?![\w/]))")
_RANGE = re.compile("(?<=[0-9])( ?)[-\u2014]\\1(?=[0-9])")
_LOOSE_UNIT = re.compile("(?<=[0-9]) (?=[%‰°])")
#: Rarely more than one pass: only where dropping a mark joins letters that are read otherwise.
_MAX_PASSES = 8


class Word(NamedTuple):
    """A normalised word, or one character of a script that is written without blanks.

    Args:
        text: The word.
        hyphenated: Whether a hyphen joins it to the next word, as in "Guinea-Bissau".
    """

    text: str
    hyphenated: bool = False


def normalise(text: str) -> str:
    """Normalise a text for answer comparison: case, quotes and articles go, the meaning stays.

    The rules are in ``docs/metrics.md``. A text that consists of nothing but punctuation keeps it.
    Normalising a second time changes nothing.

    Args:
        text: Any text.

    Returns:
        Its words with one space between them, none between characters of scripts without blanks.

    Example:
        >>> normalise("The  U.S.") == normalise("us"), normalise("1,000") == normalise("1000")
        (True, True)
        >>> normalise("Guinea-Bissau"), normalise("C#"), normalise("−1.5"), normalise("A")
        ('guinea bissau', 'c#', '-1.5', 'a')
    """
    return _join(words(text))


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[Word, ...]:
    """Split a text into normalised words.

    Every character of Chinese, Japanese, Thai, Lao, Burmese and Khmer is a word of its own, except
    that a run of Katakana is one word, so that the beginning of a text can be compared in them too.

    Args:
        text: Any text.

    Returns:
        Words in order; empty only for a text without a visible character.

    Example:
        >>> [word.text for word in words("Ｒｏｍｅ（ローマ）は首都")]
        ['rome', 'ローマ', 'は', '首', '都']
    """
    found = _split(text)
    for _ in range(_MAX_PASSES):
        again = _split(_join(found))
        if [word.text for word in again] == [word.text for word in found]:
            break
        found = again
    return tuple(found)


def _split(text: str) -> list[Word]:
    folded = _fold(text)
    spaced = "".join(_kept(folded, place) for place in range(len(folded)))
    found = [
        Word(unit, hyphenated and place == len(units) - 1)
        for piece, hyphenated in _without_articles(_pieces(spaced))
        for units in [_units(piece)]
        for place, unit in enumerate(units)
    ]
    return found or [Word(piece) for piece in folded.split() or text.split()]


def _fold(text: str) -> str:
    """Fold case and Unicode variants, write numbers in one way, drop what is not visible."""
    text = _SENTENCE_BREAK.sub(" ", text)
    text = _FRACTION_SIGN.sub("+", _EXPONENT.sub(lambda power: f"^{power[0]}", text))
    text = _NARROW_GROUPS.sub(",", text).translate(_SPELLINGS)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # The capital İ of Turkish folds to an i with a second dot; the dotless ı stays a letter.
    text = _OPTIONAL.sub("", text.replace("i\u0307", "i")).translate(_SPELLINGS)
    text = "".join(
        str(unicodedata.decimal(letter)) if letter.isdecimal() else letter
        for letter in text
        if unicodedata.category(letter) != "Cf"
    )
    text = " ".join(text.split())
    text = _THOUSANDS.sub(lambda number: re.sub("[,']", "", number[0]), text)
    text = _LOOSE_UNIT.sub("", _RANGE.sub("-", text))
    return _MIXED_NUMBER.sub(r"\1+", text)


def _kept(text: str, place: int) -> str:
    """Return what stays of one character of a folded text; a blank where words end."""
    letter = text[place]
    if not unicodedata.category(letter).startswith("P"):
        return letter
    before = text[place - 1] if place else " "
    after = text[place + 1] if place + 1 < len(text) else " "
    if letter == "&":
        return " and "
    if letter in _BETWEEN_DIGITS and _is_digit(before) and _is_digit(after):
        return letter
    if letter == "-":
        return _dash(before, after, text[place + 2 : place + 3])
    if letter == ".":
        decimal = _is_digit(after) and not _in_word(before) and before != "."
        inside = _is_letter(before) and _is_letter(after)
        return "." if decimal else "" if inside else " "
    keeps = (
        (letter in _UNIT_SIGNS and _is_digit(before))
        or (letter == "#" and (_in_word(before) or before == "#"))
        or (letter == "@" and _in_word(before) and _in_word(after))
    )
    return letter if keeps else "" if letter in _DROPPED else " "


def _dash(before: str, after: str, second: str) -> str:
    """Return a minus sign, a hyphen between two words, or the blank of any other dash."""
    if _in_word(before):
        return _HYPHEN if _in_word(after) else " "
    number = _is_digit(after) or (after == "." and second != "" and _is_digit(second))
    return "-" if number else " "


def _is_digit(letter: str) -> bool:
    return letter.isascii() and letter.isdigit()


def _is_letter(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LM"


def _in_word(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Split at blanks and hyphens; say of each piece whether a hyphen follows it."""
    return [
        (piece, number < len(parts) - 1)
        for group in text.split()
        for parts in [[part for part in group.split(_HYPHEN) if part]]
        for number, piece in enumerate(parts)
    ]


def _units(piece: str) -> list[str]:
    """Split a piece into runs of letters and single characters of scripts without blanks."""
    units: list[str] = []
    last = ""
    for letter in piece:
        kind = _script(letter)
        joins = kind == "mark" or (kind == last and kind != "single")
        if units and joins:
            units[-1] += letter
        else:
            units.append(letter)
        last = last if kind == "mark" and last else kind
    return units


def _script(letter: str) -> str:
    # Thai vowel signs are marks, so that a word never ends before one of its vowels.
    if unicodedata.category(letter).startswith("M"):
        return "mark"
    if _KATAKANA.match(letter):
        return "katakana"
    return "single" if _NO_BLANKS.match(letter) else "letters"


def _join(found: Sequence[Word]) -> str:
    text, last = "", ""
    for word in found:
        kind = _script(word.text[0])
        # A blank at a character of a script without blanks says nothing; a run of Katakana ends.
        runs_on = last != kind and "katakana" in (last, kind)
        close = not text or (kind != "mark" and ("single" in (last, kind) or runs_on))
        text += word.text if close else f" {word.text}"
        last = next((k for letter in reversed(text) if (k := _script(letter)) != "mark"), "")
    return text


def _without_articles(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Drop "the", and "a" or "an" at the beginning: "Vitamin A" is not "Vitamin"."""
    if all(piece in _ARTICLES for piece, _ in pieces):
        return pieces
    kept = [entry for entry in pieces if entry[0] != "the"]
    first = next(place for place, (piece, _) in enumerate(kept) if piece not in _ARTICLES)
    return kept[first:]
