"""Arguments of an editor as plain values: to write them down, and to build the editor again."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from lightning_edit.exceptions import ConfigError
from lightning_edit.types import EditRequest

#: Tag of a request among the arguments, in the place of an editor's class name.
REQUEST = "EditRequest"


def kept_values(thing: object) -> dict[str, Any]:
    """Return what an object keeps of its ``__init__`` arguments.

    Args:
        thing: An editor, or any object whose arguments are attributes.

    Returns:
        Its attributes and submodules, and the fields of dataclasses that are attributes.
    """
    kept: dict[str, Any] = {}
    for value in list(vars(thing).values()):
        if is_dataclass(value) and not isinstance(value, type):
            kept |= {one.name: getattr(value, one.name) for one in fields(value)}
    submodules: dict[str, Any] = vars(thing).get("_modules", {})
    return kept | vars(thing) | submodules


def shift_seeds(editor: nn.Module, seed: int) -> None:
    """Shift the seed of an editor, and of every editor in it, by the seed of a run.

    So runs with different seeds differ in what an editor draws by its own, such as context
    templates, and a seed that was given to it still counts.

    Args:
        editor: The editor, before it is bound.
        seed: Seed of the run.
    """
    parts: list[Any] = list(editor.modules())
    for part in parts:
        if type(getattr(part, "seed", None)) is int:
            part.seed += seed


def accepted_arguments(kind: type) -> tuple[str, ...]:
    """Return the names of a class's ``__init__`` arguments.

    ``**options`` is followed into base classes, as the command line does.

    Args:
        kind: The class.
    """
    from jsonargparse import ArgumentParser  # only needed to write arguments down, not to edit

    return tuple(ArgumentParser().add_class_arguments(kind))


def describe_arguments(editor: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return an editor's class name and arguments as plain JSON values, nested editors included.

    Args:
        editor: The editor.
        given: Arguments under another name than the attribute's, or with another value.

    Returns:
        ``class`` and ``args``; a nested editor and a request have the same form.

    Raises:
        ConfigError: If an argument is not kept as an attribute, or is no plain value.
    """
    kept = kept_values(editor) | dict(given)
    name = type(editor).__name__
    arguments: dict[str, Any] = {}
    for argument in accepted_arguments(type(editor)):
        if argument not in kept:
            raise ConfigError(
                f"{name} does not keep its argument `{argument}`, so {name} cannot be written "
                f"down; set `self.{argument} = {argument}` in __init__"
            )
        arguments[argument] = _plain(kept[argument], f"the argument `{argument}` of {name}")
    return {"class": name, "args": arguments}


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{what} is {value}; give a finite number")
    # By exact type: a subclass, such as NumPy's numbers, would come back as something else.
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, EditRequest):
        return {"class": REQUEST, "args": value.to_dict()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{what}, item {place}") for place, one in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(one, f"{what}, entry {key!r}") for key, one in value.items()}
    if isinstance(value, nn.Module) and callable(found := getattr(value, "plain_arguments", None)):
        return found()
    raise ConfigError(
        f"{what} is a {type(value).__name__}, which cannot be written down; give numbers, texts, "
        "lists, requests or editors"
    )


def check_arguments(kind: type, arguments: Collection[str]) -> None:
    """Check that a class has all arguments of a description.

    Args:
        kind: The class.
        arguments: Names of the arguments.

    Raises:
        ConfigError: If it lacks one.
    """
    accepted = accepted_arguments(kind)
    if unknown := [name for name in arguments if name not in accepted]:
        raise ConfigError(
            f"{kind.__name__} has no argument {', '.join(map(repr, unknown[:4]))}; it has: "
            f"{', '.join(accepted) or 'none'}"
        )
