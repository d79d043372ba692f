"""Module adapters: change what a module returns while edits are in force, and leave no trace.

The module stays where it is, with its name, weights and type: for the time of the adapter its class
is a subclass that passes input and output through the adapter. So parameter names, state dicts and
copies of the model are those of the unedited one.
"""

import copyreg
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn

from lightning_edit.inference.hooks import first_tensor, hidden_argument, replace_first
from lightning_edit.inference.model_call import ModelCall, ModelCalls, calls_of

_STATE = "_lightning_edit_adapter"
#: Attribute of a module that may have an adapter: computes its own output in place of its class.
OWN_FORWARD = "_lightning_edit_own_forward"


class ModuleAdapter(ABC):
    """What acts at one module: a codebook, a side memory, extra neurons."""

    by_prompt: ClassVar[bool] = False
    """Whether it needs to know which tokens are the prompt (:class:`ModelCall`)."""

    @abstractmethod
    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        """Return the output that the module gives instead of its own.

        Args:
            hidden: Input of the module; (b, t, d) if the adapter works by prompt, else as the
                module gets it, (..., d).
            output: Its own output, of the same leading shape.
            call: The model's call; ``None`` if the adapter does not work by prompt.
        """


class _Adapted:
    """Mixed into the class of a module for as long as it has an adapter."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = self.__dict__.get(OWN_FORWARD)
        if own is None:
            own = super().forward  # type: ignore[misc]  # the module's own class
        output = own(*args, **kwargs)
        return _adapt(self.__dict__[_STATE], output, args, kwargs)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module without its adapter.

    Args:
        module: Any module.
    """
    return type(module).__mro__[2] if isinstance(module, _Adapted) else type(module)


@cache
def _adapted_class(own: Any) -> type[nn.Module]:
    metaclass: Any = type(own)
    adapted: type[nn.Module] = _metaclass(metaclass)(
        f"{own.__name__}WithEdits", (_Adapted, own), {}
    )
    return adapted


@cache
def _metaclass(own: Any) -> Any:
    """Return the type of such classes, which pickle (``torch.save`` of a model) asks first."""
    metaclass = type(f"{own.__name__}WithEdits", (own,), {})
    copyreg.pickle(metaclass, _refuse_pickle)
    return metaclass


def _refuse_pickle(_: type) -> NoReturn:
    raise pickle.PicklingError(
        "edits that act at run time are in this model's modules, and a pickle would not hold them; "
        "`edited.export(folder)` writes the edited model, `undo` takes the edits out"
    )


class _AdaptedForward:
    """In the place of a `forward` that another library (accelerate) has put on the module."""

    def __init__(self, module: nn.Module, inner: Callable[..., Any]) -> None:
        self.module, self.inner = module, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        return _adapt(self.module.__dict__[_STATE], output, args, kwargs)


_State = tuple[ModuleAdapter, ModelCalls | None]
"""An adapter, and what it learns of the model's calls."""


def _adapt(state: _State, output: Any, args: Any, kwargs: Any) -> Any:
    adapter, calls = state
    hidden, own = hidden_argument(args, kwargs), first_tensor(output)
    if calls is None:
        return replace_first(output, adapter.act(hidden, own, None))
    call = calls.current
    shape = call.shape
    new = adapter.act(hidden.reshape(*shape, -1), own.reshape(*shape, -1), call)
    return replace_first(output, new.reshape(own.shape))


def attach(model: nn.Module, adapters: Mapping[str, ModuleAdapter]) -> Callable[[], None]:
    """Attach adapters to modules of a model.

    Args:
        model: The language model.
        adapters: Adapters by dotted module name. An adapter that is there already is replaced until
            this one is detached; detach in the reverse order.

    Returns:
        What detaches them and leaves the model as it was.
    """
    attachment = _Attachment([])
    calls = None
    if any(adapter.by_prompt for adapter in adapters.values()):
        calls = calls_of(model)
        if calls is None:
            calls = ModelCalls()
            attachment.ends.append(calls.watch(model))
    for name, adapter in adapters.items():
        module = model.get_submodule(name)
        state = adapter, calls if adapter.by_prompt else None
        attachment.ends.append(_attach(module, state))
    return attachment


@dataclass(frozen=True)
class _Attachment:
    """Detaches adapters; a copy of it, made together with the model, those of the copy."""

    ends: list[Callable[[], None]]

    def __call__(self) -> None:
        while self.ends:
            self.ends.pop()()


@contextmanager
def attached(model: nn.Module, adapters: Mapping[str, ModuleAdapter]) -> Iterator[None]:
    """Attach adapters inside the ``with`` block, for example to train them.

    Args:
        model: The language model.
        adapters: Adapters by dotted module name, in place of those that are there.
    """
    detach = attach(model, adapters)
    try:
        yield
    finally:
        detach()


def _attach(module: nn.Module, state: _State) -> Callable[[], None]:
    before = module.__dict__.get(_STATE)
    module.__dict__[_STATE] = state
    own, inner = type(module), module.__dict__.get("forward")
    if before is None:
        if inner is None:
            module.__class__ = _adapted_class(own)  # type: ignore[arg-type]  # a class is hashable
        else:
            module.__dict__["forward"] = _AdaptedForward(module, inner)
    return _Detachment(module, before, own, inner)


@dataclass(frozen=True)
class _Detachment:
    """Leaves a module as it was before it got an adapter.

    Args:
        module: The module.
        before: State of an earlier adapter, which stays; ``None``: there was none.
        own: Class of the module, where it had no adapter.
        inner: A ``forward`` that another library has put on it.
    """

    module: nn.Module
    before: _State | None
    own: type[nn.Module]
    inner: Callable[..., Any] | None

    def __call__(self) -> None:
        if self.before is not None:
            self.module.__dict__[_STATE] = self.before
            return
        del self.module.__dict__[_STATE]
        if self.inner is None:
            self.module.__class__ = self.own
        else:
            self.module.__dict__["forward"] = self.inner
