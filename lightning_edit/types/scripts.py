"""Scripts that are written without blanks between words."""

#: Chinese and Japanese: no blank even before words of other scripts. Korean has blanks.
_UNSPACED = (
    (0x2E80, 0x303F),  # CJK radicals, punctuation
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF01, 0xFF9F),  # full width forms, half width Katakana
    (0x20000, 0x3FFFF),  # Han
)
#: Thai, Lao, Tibetan, Burmese and Khmer: blanks around words of other scripts only.
_JOINED = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF))


def is_unspaced(character: str) -> bool:
    """Return whether a character is Chinese or Japanese, full width punctuation included.

    Args:
        character: One character; an empty text is none.

    Example:
        >>> is_unspaced("京"), is_unspaced("："), is_unspaced("울")
        (True, True, False)
    """
    return _within(character, _UNSPACED)


def is_joined(character: str) -> bool:
    """Return whether a character is of a script that has no blanks between its own words.

    Args:
        character: One character; an empty text is none.

    Example:
        >>> is_joined("ก"), is_joined("京"), is_joined("a")
        (True, True, False)
    """
    return _within(character, _UNSPACED) or _within(character, _JOINED)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return bool(character) and any(low <= ord(character) <= high for low, high in ranges)
