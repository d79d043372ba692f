"""Type checks of the library while its tests run, without their price where there are no arrays.

The import hook (``--jaxtyping-packages``) makes three functions of each: for the shapes of arrays
it binds the arguments to the signature at every call, and checks them before and after. A function
that names no array has no shapes; ``beartype`` alone checks the types of its arguments and of its
result, in one pass.
"""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, TypeVar, get_args, get_origin

import jaxtyping

_whole: Callable[..., Any] = jaxtyping.jaxtyped


def is_plain(hint: Any) -> bool:
    """Return whether an annotation names no array, and nothing that must be looked up first."""
    if get_origin(hint) is Literal:
        return True
    if isinstance(hint, str | ForwardRef) or type(hint).__module__.startswith("jaxtyping"):
        return False
    if isinstance(hint, TypeVar):
        return is_plain(hint.__bound__) and all(map(is_plain, hint.__constraints__))
    parts = hint if isinstance(hint, list | tuple) else get_args(hint)
    return all(map(is_plain, parts))


def checked(fn: Any = None, *, typechecker: Any) -> Any:
    """Decorate a function or class of the library: what the import hook calls.

    Args:
        fn: The function or class; ``None``: return the decorator.
        typechecker: Checks types: ``beartype``.
    """
    if fn is None:
        return lambda fn: checked(fn, typechecker=typechecker)
    if inspect.isclass(fn):
        # Fields are checked after a dataclass had its chance to refuse them in its own words.
        return _whole(fn, typechecker=typechecker)
    if (
        inspect.isfunction(fn)
        and not inspect.isgeneratorfunction(fn)
        and all(map(is_plain, fn.__annotations__.values()))
    ):
        return typechecker(fn)
    return _whole(fn, typechecker=typechecker)


def install() -> None:
    """Let modules that are imported from now on be checked by :func:`checked`."""
    jaxtyping.jaxtyped = checked  # type: ignore[assignment]
