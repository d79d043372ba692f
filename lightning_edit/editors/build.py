"""Build an editor from its description: a class that is known here, and plain arguments.

No name is imported and no code is read: a class is one of this library, or a subclass of ``Editor``
that the caller has imported already.
"""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning_edit.editors as editors
from lightning_edit.editors.arguments import REQUEST, check_arguments
from lightning_edit.editors.base import Editor, final_editors
from lightning_edit.editors.no_editor import NoEditor
from lightning_edit.exceptions import ConfigError
from lightning_edit.types import EditRequest


def find_editor(name: str, module: str | None = None) -> type[Editor] | None:
    """Return the class of an editor: one of this library, or a subclass imported before.

    Args:
        name: Name of the class.
        module: Name of its module, which decides between several of one name.

    Returns:
        The class; ``None`` if there is none, or several of that name.
    """
    if name == NoEditor.__name__:  # of a handle whose updates were made elsewhere
        return NoEditor
    if name in editors.__all__:
        own: type[Editor] = getattr(editors, name)
        return own
    found = [kind for kind in final_editors(Editor) if kind.__name__ == name]
    exact = [kind for kind in found if kind.__module__ == module]
    chosen = exact or found
    # A module that was loaded again has defined its classes again; the newest counts.
    places = {kind.__module__ + kind.__qualname__ for kind in chosen}
    return chosen[-1] if len(places) == 1 else None


def build_editor(described: Mapping[str, Any], module: str | None = None) -> Editor:
    """Build an editor from its class name and its arguments.

    Args:
        described: ``class`` and ``args``, as :meth:`Editor.plain_arguments` returns them.
        module: Name of the module that defines the class.

    Returns:
        The editor, not yet bound.

    Raises:
        ConfigError: If it, or an editor inside it, is not known here, or an argument does not fit.
    """
    name, arguments = described["class"], described["args"]
    kind = find_editor(name, module)
    if kind is None:
        raise ConfigError(
            f"the editor {name} is not one of lightning_edit, and no single subclass of Editor of "
            f"that name is imported; import the module that defines it ({module or 'its own'}) "
            "before"
        )
    check_arguments(kind, arguments)
    hints = _argument_types(kind)
    given = {}
    for one, value in arguments.items():
        given[one] = _fit(_revive(value, module), hints.get(one, Any), f"`{one}` of {name}")
    try:
        editor: Editor = kind(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built from its arguments: {error}") from error
    return editor


def _revive(value: Any, module: str | None) -> Any:
    """Convert plain values to arguments: nested editors, requests."""
    if isinstance(value, Mapping) and value.keys() - {"auto"} == {"class", "args"}:
        if value["class"] != REQUEST:
            return build_editor(value, module)
        try:
            return EditRequest.from_dict(value["args"])
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise ConfigError(f"a request among the arguments is damaged: {error}") from error
    if isinstance(value, Mapping):
        return {key: _revive(one, module) for key, one in value.items()}
    return [_revive(one, module) for one in value] if isinstance(value, list) else value


def _argument_types(kind: type) -> dict[str, Any]:
    """Return the type hints of a class's arguments; a subclass's own count first."""
    hints: dict[str, Any] = {}
    for cls in kind.__mro__:
        if "__init__" in vars(cls) and cls.__module__.partition(".")[0] not in (
            "lightning",
            "torch",
            "builtins",
        ):
            hints = typing.get_type_hints(vars(cls)["__init__"]) | hints
    return hints


def _fit(value: Any, hint: Any, what: str) -> Any:
    """Return a value as its type hint wants it, or say that its type is wrong."""
    for fitted in _fits(value, hint):
        return fitted
    shown = str(hint).replace("typing.", "") if not isinstance(hint, type) else hint.__name__
    raise ConfigError(f"{what}: expected {shown}, got {value!r:.60}")


def _fits(value: Any, hint: Any) -> Iterator[Any]:
    """Yield a value in the form of a type hint, if it fits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        yield value
    elif origin in (typing.Union, types.UnionType):
        for one in inner:
            yield from _fits(value, one)
    elif origin is typing.Literal:
        yield from (one for one in inner if type(one) is type(value) and one == value)
    elif hint is None or hint is type(None):
        yield from [None] if value is None else []
    elif hint is float:
        yield from [float(value)] if type(value) in (int, float) else []
    elif hint in (int, bool, str):
        yield from [value] if type(value) is hint else []
    elif origin is tuple or (origin in (list, Sequence) and inner):
        yield from _fit_items(value, origin, inner)
    elif isinstance(origin or hint, type):
        yield from [value] if isinstance(value, origin or hint) else []
    else:
        yield value


def _fit_items(value: Any, origin: Any, inner: tuple[Any, ...]) -> Iterator[Any]:
    if not isinstance(value, list | tuple):
        return
    fixed = origin is tuple and inner[-1:] != (Ellipsis,)
    hints = inner if fixed else inner[:1] * len(value)
    if len(hints) != len(value):
        return
    items = [list(_fits(one, hint))[:1] for one, hint in zip(value, hints, strict=True)]
    if all(items):
        flat = [one for (one,) in items]
        yield tuple(flat) if origin is tuple else flat
