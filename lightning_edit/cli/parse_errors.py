"""Errors of the argument parser in words: which option, what was expected, and what was given."""

import re

HELP = ". `--help` lists every option"
"""Where to look, at the end of a parser's error."""
_KEY = re.compile(r'Parser key "([^"]+)"([^:]*):?\s*(.*)')
_EXPECTED = re.compile(
    r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])(?:\. Got value: (.*))?"
)
_GIVEN = "Given value: "
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list, such as '[1, 2]'",
    "dict": "a mapping, such as '{name: value}'",
}


def parse_error_reason(message: str) -> str:
    r"""Return the reason in an error message of jsonargparse.

    Args:
        message: Message of the parser, with every type that it tried; of a class's argument it
            holds the message of the class's parser, which has been through here.

    Example:
        >>> parse_error_reason("Parser key \"lr\":\n  Expected a <class 'float'>. Got value: x")
        '--lr: expected a number, got x'
    """
    lines = [line.strip() for line in message.replace(HELP, "").splitlines()]
    first, *rest = [line for line in lines if line]
    # An optional option has a union type; "none" is no help to the user.
    tried = [line[2:] for line in rest if line.startswith("- ") and "NoneType" not in line]
    key = _KEY.fullmatch(first)
    if key is None:
        return (_join(tried) if tried else " ".join([first, *rest])).strip().rstrip(".")
    option = f"--{key[1]}{key[2]}"
    reasons = tried or [" ".join([key[3], *rest]).strip()]
    if len(reasons) == 1 and reasons[0].startswith("--"):
        return f"{option}.{reasons[0][2:]}"
    expected = [found for one in reasons if (found := _EXPECTED.fullmatch(one))]
    if len(expected) < len(reasons) or any(one[1] and one[1] not in _WORDS for one in expected):
        return f"{option}: {_join(reasons)}"
    given = [one[3] for one in expected if one[3]]  # of a part, before that of the whole
    given += [line.removeprefix(_GIVEN) for line in rest if line.startswith(_GIVEN)]
    words = dict.fromkeys(word for one in expected for word in _words(one))
    return f"{option}: expected {' or '.join(words)}, got {given[0] if given else 'nothing'}"


def _join(reasons: list[str]) -> str:
    return "; ".join(reasons).rstrip(".")


def _words(found: re.Match[str]) -> list[str]:
    if found[1]:
        return [_WORDS[found[1]]]
    return [one.strip(" '\"") for one in found[2].split(",")]
