"""Types of command-line options, for argparse. Loads no torch, so that ``--help`` is fast."""

import argparse


def boolean(value: str) -> bool:
    """Parse ``true`` or ``false``.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
    return value.lower() == "true"


def positive(value: str) -> int:
    """Parse a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    return _at_least(1, value)


def whole(value: str) -> int:
    """Parse a whole number of 0 or more.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    return _at_least(0, value)


def _at_least(least: int, value: str) -> int:
    if not value.isdecimal() or int(value) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of {least} or more, got {value!r}"
        )
    return int(value)
