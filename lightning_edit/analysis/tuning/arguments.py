"""Arguments of an editor and of the wrappers around it, by the names that a search gives them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument of an editor or of a wrapper around it.

    Args:
        depth: Number of wrappers around the editor whose argument it is.
        name: Its name there.
        kind: Class of that editor.
        value: Its value as configured.
    """

    depth: int
    name: str
    kind: type[Any]
    value: Any

    @property
    def option(self) -> str:
        """Option of the command line that sets it."""
        return "--model" + ".editor" * self.depth + f".{self.name}"


def arguments_of(configured: Mapping[str, Any], kinds: Sequence[type[Any]]) -> dict[str, Argument]:
    """Return the arguments of an editor and of its wrappers, those of the innermost one first.

    An argument has its own name, or, where an editor further inside has one of that name, the name
    of the class before it: ``alpha`` of LoRA, and ``OneLI.alpha`` around it.

    Args:
        configured: Class path and arguments, defaults included; hosts nested under ``editor``.
        kinds: Classes of the editors, the outermost first.
    """
    levels = [configured]
    for _ in kinds[1:]:
        levels.append(levels[-1]["init_args"]["editor"])
    found: dict[str, Argument] = {}
    for depth in reversed(range(len(kinds))):
        for name, value in levels[depth].get("init_args", {}).items():
            shown = f"{kinds[depth].__name__}.{name}" if name in found else name
            found[shown] = Argument(depth, name, kinds[depth], value)
    return found


def with_values(
    configured: Mapping[str, Any], arguments: Mapping[str, Argument], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a configuration with other values of some arguments; the given one stays.

    Args:
        configured: Class path and arguments; hosts nested under ``editor``.
        arguments: Arguments by name, see :func:`arguments_of`.
        values: New values by name.
    """
    changed: dict[str, Any] = deepcopy(dict(configured))
    for name, value in values.items():
        level = changed
        for _ in range(arguments[name].depth):
            level = level["init_args"]["editor"]
        level.setdefault("init_args", {})[arguments[name].name] = value
    return changed
