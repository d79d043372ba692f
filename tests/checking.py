"""Type checks of the library while its tests run, at less than the price of the import hook.

The import hook (``--jaxtyping-packages``) makes three functions of each: for the shapes of arrays
it binds the arguments to the signature at every call, and checks them before and after. Here
``beartype`` checks the arguments and the result of a function in one pass, and sizes that have a
name must agree within it. A function inside a function is made at each call of the outer one; its
checker is made once.
"""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, ForwardRef, Literal, TypeVar, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

_whole: Callable[..., Any] = jaxtyping.jaxtyped
#: Its errors are those of the import hook: a wrong type is a `TypeError`, as Python's own are.
_check: Callable[..., Any] = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


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


def is_resolved(hint: Any) -> bool:
    """Return whether an annotation holds no name that must be looked up first."""
    if get_origin(hint) is Literal:
        return True
    if isinstance(hint, str | ForwardRef):
        return False
    if isinstance(hint, TypeVar):
        return is_resolved(hint.__bound__) and all(map(is_resolved, hint.__constraints__))
    parts = hint if isinstance(hint, list | tuple) else get_args(hint)
    return all(map(is_resolved, parts))


def checked(fn: Any = None, *, typechecker: Any) -> Any:
    """Decorate a function or class of the library: what the import hook calls.

    Args:
        fn: The function or class; ``None``: return the decorator.
        typechecker: Checks types: ``beartype``.
    """
    if fn is None:
        return lambda fn: checked(fn, typechecker=typechecker)
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and not hasattr(fn.__init__, "__wrapped__"):
            fn.__init__ = _function(fn.__init__, typechecker)  # type: ignore[misc]
        return fn
    # A generator function's arguments would be checked at the first step, among its caller's sizes.
    if not inspect.isfunction(fn) or inspect.isgeneratorfunction(fn):
        return _whole(fn, typechecker=typechecker)
    make = _again if "<locals>" in fn.__qualname__ else _function
    return make(fn, typechecker)


def _function(fn: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    hints = fn.__annotations__.values()
    if not all(map(is_resolved, hints)):
        return _whole(fn, typechecker=typechecker)
    typed: Callable[..., Any] = _check(fn)
    return typed if all(map(is_plain, hints)) else _with_sizes(typed)


def _with_sizes(typed: Callable[..., Any]) -> Callable[..., Any]:
    """Let a size that has a name be the same in all arguments and in the result of one call."""

    @functools.wraps(typed)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _whole("context"):
            return typed(*args, **kwargs)

    return call


class _Asked(threading.local):
    """The functions whose arguments are being checked, the innermost last."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []


_asked = _Asked()
#: By the code of a function inside a function: its annotations, and a checker that calls the one
#: that asks; ``None`` where an annotation must be looked up among its own names.
_checkers: dict[CodeType, tuple[dict[str, Any], Callable[..., Any] | None]] = {}


def _again(fn: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    """Check a function inside a function with the checker of its first making."""
    hints = fn.__annotations__
    known = _checkers.get(fn.__code__)
    if known is None or known[0] != hints:

        @functools.wraps(fn)
        def relay(*args: Any, **kwargs: Any) -> Any:
            return _asked.functions[-1](*args, **kwargs)

        resolved = all(map(is_resolved, hints.values()))
        known = _checkers[fn.__code__] = (
            hints,
            _function(relay, typechecker) if resolved else None,
        )
    checker = known[1]
    if checker is None:
        return _whole(fn, typechecker=typechecker)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        _asked.functions.append(fn)
        try:
            return checker(*args, **kwargs)
        finally:
            _asked.functions.pop()

    return call


def install() -> None:
    """Let modules that are imported from now on be checked by :func:`checked`."""
    jaxtyping.jaxtyped = checked  # type: ignore[assignment]
