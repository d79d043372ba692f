"""Texts of data for a terminal: what it would obey instead of showing is escaped.

A text may hold escape sequences (which move the cursor, set a title, paste) and marks that reverse
the direction of writing (which show another text than the one that is there).
"""

#: Marks of the direction of writing, which reorder what stands around them (Unicode UAX #9).
_DIRECTION = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_LINES = "\n\t"
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in {*range(0x20), *range(0x7F, 0xA0), *_DIRECTION, 0x2028, 0x2029}
    if chr(code) not in _LINES
}


def visible(text: str) -> str:
    r"""Escape control characters and marks of direction, all but line breaks and tabs.

    Args:
        text: Text of which a part comes from data.

    Example:
        >>> print(visible("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return text.translate(_ESCAPES)
