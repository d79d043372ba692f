"""Checks of a verb's arguments before they are parsed: YAML files, and names of classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_edit.storage.yaml_files import check_yaml

_YAML = (".yaml", ".yml")
_CONFIG = ("--config", "-c")


def check_yaml_arguments(argv: Sequence[str]) -> None:
    """Check every YAML file that the arguments name; the parser would expand each alias in it.

    Args:
        argv: Arguments of a verb.

    Raises:
        ConfigError: If a file is missing, is no mapping of options, or is blown up by aliases.
    """
    configs = {value for option in _CONFIG for value in option_values(argv, option)}
    for argument in argv:
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        named = value.lower().endswith(_YAML) and "\0" not in value and Path(value).exists()
        if value in configs or named:
            check_yaml(Path(value))


def option_values(argv: Sequence[str], option: str) -> Iterator[str]:
    """Yield the values of an option.

    Args:
        argv: Arguments of a verb.
        option: The option, such as ``--model``.
    """
    for position, argument in enumerate(argv):
        if argument == option and position + 1 < len(argv):
            yield argv[position + 1]
        elif argument.startswith(f"{option}="):
            yield argument.partition("=")[2]


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a mistyped one is closest to, upper and lower case being equal.

    Args:
        name: The mistyped name.
        known: The known names.
    """
    from difflib import get_close_matches  # only needed for a typo

    folded = {one.casefold(): one for one in reversed(known)}
    found = get_close_matches(name.casefold(), list(folded), n=1)
    return folded[found[0]] if found else None
