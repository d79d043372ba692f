"""What an editor or a data module was made with, as plain values."""

import inspect
from dataclasses import asdict, is_dataclass
from typing import Any


def describe(thing: object) -> dict[str, Any]:
    """Return an object's class and the ``__init__`` arguments that it keeps.

    Arguments of all classes it inherits from count; values are taken from attributes, or from
    fields of dataclasses that are attributes. Editors inside editors are described too.

    Args:
        thing: An editor or a data module.

    Returns:
        ``class`` and ``args``.
    """
    kept: dict[str, Any] = {}
    for value in list(vars(thing).values()):
        if is_dataclass(value) and not isinstance(value, type):
            kept |= asdict(value)
    kept |= vars(thing) | vars(thing).get("_modules", {})
    names = [
        name
        for cls in type(thing).__mro__
        if cls.__module__.partition(".")[0] not in ("lightning", "torch", "builtins")
        and "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
    ]
    args = {name: _plain(kept[name]) for name in names if name in kept}
    return {"class": type(thing).__name__, "args": args}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "state_dict"):
        return describe(value)
    return str(value)
