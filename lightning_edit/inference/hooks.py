"""Forward hooks that capture or replace hidden states of a model inside a ``with`` block.

Modules may take their hidden state as first argument or as keyword, and may return a tensor or a
tuple that starts with one; OPT's MLP layers see (b·t, d) instead of (b, t, d). The context managers
here hide these differences. Axis names: ``b`` -- rows of the batch; ``t`` -- token positions; ``d``
-- width.

Note:
    Hooks that are added after ``torch.compile`` are ignored by it unless
    ``torch._dynamo.config.skip_nnmodule_hook_guards`` is ``False``; do not compile while editing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_edit.exceptions import ArchitectureError

Side = Literal["input", "output", "both"]

#: Forward arguments that give the batch shape; those of a decoder come first.
_BATCH_ARGUMENTS = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")


class _StopForwardError(Exception):
    """Early stop of a forward pass that captured everything wanted; never leaves this module."""


def first_tensor(value: Any) -> Tensor:
    """Return the hidden state of a module's output: the tensor itself or the first of a tuple."""
    head = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(head, Tensor):
        raise ArchitectureError(
            "expected a module that takes and returns a hidden state (a tensor or a tuple that "
            f"starts with one), got {type(head).__name__}; hook another module"
        )
    return head


def replace_first(value: Any, new: Tensor) -> Any:
    """Return a module's output with another hidden state, keeping the rest of a tuple."""
    return (new, *value[1:]) if isinstance(value, tuple) else new


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return a module's hidden-state argument; Llama's attention gets it as a keyword."""
    return first_tensor(args[0] if args else kwargs.get("hidden_states"))


@contextmanager
def hooked(
    module: nn.Module,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
    *,
    with_kwargs: bool = False,
) -> Iterator[None]:
    """Register forward hooks on a module inside the ``with`` block; all hooks go through here.

    Args:
        module: The module.
        before: A forward pre-hook: gets the module and its arguments, may return others.
        after: A forward hook: gets the module, its arguments and its output, may return another.
        with_kwargs: Whether ``before`` gets keyword arguments too.
    """
    remove = add_hooks(module, before, after, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        remove()


def add_hooks(
    module: nn.Module,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
    *,
    with_kwargs: bool = False,
    always: bool = False,
) -> Callable[[], None]:
    """Register forward hooks on a module until they are removed; see :func:`hooked`.

    Args:
        module: The module.
        before: A forward pre-hook.
        after: A forward hook.
        with_kwargs: Whether ``before`` gets keyword arguments too.
        always: Whether ``after`` is called after a forward pass that raised, too.

    Returns:
        What removes them.
    """
    handles = []
    if before is not None:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=with_kwargs))
    if after is not None:
        handles.append(module.register_forward_hook(after, always_call=always))
    return _Removal(handles)


@dataclass(frozen=True)
class _Removal:
    """Removes hooks; a copy of it, made together with the modules, those of the copies."""

    handles: list[RemovableHandle]

    def __call__(self) -> None:
        for handle in self.handles:
            handle.remove()


class _BatchShape:
    """Batch shape (b, t) of the running forward pass, to unflatten (b·t, d) activations."""

    def __init__(self) -> None:
        self.shape: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs[name] for name in _BATCH_ARGUMENTS if kwargs.get(name) is not None]
        ids = named[0] if named else (args[0] if args else None)
        self.shape = (ids.shape[0], ids.shape[1]) if isinstance(ids, Tensor) else None

    def unflatten(self, hidden: Tensor) -> Tensor:
        """Reshape (b·t, d) to (b, t, d); return any other shape unchanged."""
        if self.shape is None or hidden.dim() != 2 or hidden.shape[0] != _product(self.shape):
            return hidden
        return hidden.view(*self.shape, hidden.shape[-1])


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


@contextmanager
def capture(
    model: nn.Module, wanted: Mapping[str, Side], *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Capture inputs or outputs of modules during a forward pass inside the ``with`` block.

    Args:
        model: The model; run it as a whole (``model(**batch)``) inside the block.
        wanted: Dotted module name to ``"input"``, ``"output"`` or ``"both"``.
        stop: Stop the forward pass as soon as everything wanted is captured. The ``with`` block
            ends there, so the call of the model must be its last statement.

    Yields:
        A dictionary that the forward pass fills: one entry under the module's name, or for
        ``"both"`` two, under ``name@input`` and ``name@output``. Tensors are (b, t, d) and keep
        their autograd graph, so run under ``torch.no_grad()`` where no gradient is wanted. A later
        forward pass overwrites them.

    Raises:
        ArchitectureError: If the model has no module of that name.
    """
    captured: dict[str, Tensor] = {}
    needed = {
        (f"{name}@{side}" if sides == "both" else name): (name, side)
        for name, sides in wanted.items()
        for side in (("input", "output") if sides == "both" else (sides,))
    }
    batch = _BatchShape()

    def record(key: str, hidden: Tensor) -> None:
        captured[key] = batch.unflatten(hidden)
        if stop and captured.keys() >= needed.keys():
            raise _StopForwardError

    with ExitStack() as stack:
        stack.enter_context(hooked(model, batch, with_kwargs=True))
        for key, (name, side) in needed.items():
            stack.enter_context(_capture_hook(_module(model, name), key, side, record))
        try:
            yield captured
        except _StopForwardError:
            return


def _capture_hook(
    module: nn.Module, key: str, side: str, record: Callable[[str, Tensor], None]
) -> AbstractContextManager[None]:
    if side == "input":
        return hooked(
            module,
            lambda _, args, kwargs: record(key, hidden_argument(args, kwargs)),
            with_kwargs=True,
        )
    return hooked(module, after=lambda _, args, output: record(key, first_tensor(output)))


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ArchitectureError(
            f"{type(model).__name__} has no module {name!r} ({error}); "
            "`lightning-edit doctor MODEL` lists the modules that editors use"
        ) from error


@contextmanager
def replace_output(
    module: nn.Module, fn: Callable[[Tensor], Tensor], *, within: nn.Module | None = None
) -> Iterator[None]:
    """Replace a module's output by a function of it, keeping the rest of a tuple.

    Args:
        module: The module whose output changes.
        fn: Takes the hidden state, returns its replacement of the same shape; it must not change
            its argument in place.
        within: The whole model, when ``module`` may see flattened activations (OPT's MLP): ``fn``
            then gets (b, t, d) there too.
    """
    batch = _BatchShape()

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = first_tensor(output)
        return replace_first(output, fn(batch.unflatten(hidden)).view(hidden.shape))

    with ExitStack() as stack:
        if within is not None:
            stack.enter_context(hooked(within, batch, with_kwargs=True))
        stack.enter_context(hooked(module, after=hook))
        yield


@contextmanager
def record_factors(
    model: nn.Module, modules: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Record inputs of layers, and zeros that are added to their outputs to take gradients at.

    No weight has to require a gradient: that of a weight is the sum over tokens of the zero's
    gradient times the input.

    Args:
        model: The model; run it as a whole inside the block, with gradients enabled.
        modules: Dotted names of layers.

    Yields:
        Inputs and zeros by layer, which the forward pass fills.
    """
    zeros: dict[str, Tensor] = {}

    def add_zero(name: str, hidden: Tensor) -> Tensor:
        zeros[name] = torch.zeros_like(hidden, requires_grad=True)
        return hidden + zeros[name]

    with ExitStack() as stack:
        captured = stack.enter_context(capture(model, dict.fromkeys(modules, "input")))
        for name in modules:
            hook = replace_output(_module(model, name), partial(add_zero, name), within=model)
            stack.enter_context(hook)
        yield captured, zeros


@contextmanager
def replace_input(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's input hidden state by a function of it, positional or keyword.

    Args:
        module: The module whose input changes.
        fn: Takes the hidden state as the module gets it, returns its replacement.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = fn(hidden_argument(args, kwargs))
        if args:
            return (new, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": new}

    with hooked(module, hook, with_kwargs=True):
        yield


@contextmanager
def returns_tuples(module: nn.Module) -> Iterator[list[bool]]:
    """Record at every call whether a module returns a tuple, which :func:`returning` must know.

    Args:
        module: The module, for example a block.

    Yields:
        A list that gets one entry per call.
    """
    kinds: list[bool] = []
    with hooked(module, after=lambda *call: kinds.append(type(call[2]) is tuple)):
        yield kinds


@contextmanager
def returning(module: nn.Module, value: Tensor | None, as_tuple: bool) -> Iterator[None]:
    """Skip a block: return a given hidden state, or the block's input, instead of running it.

    Args:
        module: The block.
        value: What it returns; ``None``: its input.
        as_tuple: Whether blocks of this model return tuples.
    """

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = hidden if value is None else value
        return (result, None) if as_tuple else result

    # An instance has its own `forward` where another library (accelerate) has wrapped it.
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@contextmanager
def select_head_positions(model: nn.Module, index: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Compute logits at chosen positions only, by giving the output head no other positions.

    Inside the block the model's ``logits`` are (pairs, 1, v) in the order of ``index``. What
    follows the head (soft-capping, a bias on the logits) works unchanged. Call the model without
    ``labels`` and without ``logits_to_keep``.

    Args:
        model: A Hugging Face model with an output head.
        index: Row numbers and (decoder) positions, two integer tensors of equal length.

    Raises:
        ArchitectureError: If the model has no output head.
    """
    getter: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = None if getter is None else getter()
    if head is None:
        raise ArchitectureError(
            f"{type(model).__name__} has no output head to read logits from; "
            "load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    rows, positions = index
    with replace_input(head, lambda hidden: hidden[rows, positions].unsqueeze(1)):
        yield
