"""Model calls seen from inside: which tokens are the prompt, and decisions once a prompt.

An editor that routes (GRACE, WISE, MEMOIR, MELO) decides once a prompt whether an edit applies, and
keeps the decision for every token of the answer: forced or generated, with or without a KV cache,
alone or in a batch, padded on either side.

Of two stacks the encoder reads prompts only, once each; a decision in the decoder is taken at the
first token that it reads, which attends to the encoder's states of the prompt and to nothing else.

Axis names: ``b`` -- rows; ``t`` -- positions; ``d`` -- width.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.call_inputs import named_inputs, real_positions, unwrapped
from lightning_edit.inference.hooks import add_hooks
from lightning_edit.inference.packed.backend import NotPackableError, packable
from lightning_edit.inference.watched_generate import Generation, WatchedGenerate, last_real
from lightning_edit.models.view import Stack

T = TypeVar("T")

#: Attribute of a KV cache that holds the decisions of the prompts in it.
_KEPT = "_lightning_edit_decisions"
#: Attribute of a model that holds its :class:`ModelCalls`.
_CALLS = "_lightning_edit_calls"
#: Names among the decisions that no decision can have: the number of rows, the watch under which
#: they were taken, and whether it was known where prompts end.
_ROWS, _WATCH, _KNOWN = "(rows)", "(watch)", "(ends known)"
_NUMBERS = count()


class ModelCall:
    """One forward call of a model, as a module inside it needs to know it.

    With two stacks it is the call of the stack that the module is in.

    Args:
        ends: Position of each prompt's last token; in a decoder of two stacks, of the first token.
        real: Positions that are no padding.
        begins: Whether this call reads prompts; ``False`` for the steps of a generation that
            continue a KV cache.
        decisions: What was decided for these prompts, by name; shared with the calls that follow.
        packed: Whether rows hold several texts, so that there is no decision a row.
        refusal: Why it cannot be told where prompts end; empty where it can.
    """

    def __init__(
        self,
        ends: Int[Tensor, " b"],
        real: Bool[Tensor, "b t"],
        begins: bool,
        decisions: dict[str, Any],
        packed: bool,
        refusal: str = "",
    ) -> None:
        self.ends = ends
        self.real = real
        self.begins = begins
        self.decisions = decisions
        self.packed = packed
        self.refusal = refusal

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions of the call's input."""
        return self.real.shape[0], self.real.shape[1]

    @property
    def prompt(self) -> Bool[Tensor, "b t"]:
        """Positions of the prompts, the last token included; none in a step of a generation."""
        if not self.begins:
            return torch.zeros_like(self.real)
        steps = torch.arange(self.real.shape[1], device=self.real.device)
        return self.real & (steps <= self.ends[:, None])

    def at_ends(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """Return the hidden state at each prompt's last token.

        Args:
            hidden: Hidden states of a call that reads prompts.
        """
        return hidden[torch.arange(len(hidden), device=hidden.device), self.ends]

    def prompt_mean(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """Return the mean over each prompt's tokens, padding and answer left out.

        Args:
            hidden: Hidden states of a call that reads prompts.
        """
        weight = self.prompt.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1)

    def decide(self, name: str, make: Callable[[], T]) -> T:
        """Return what was decided for these prompts; decide now if this call reads them.

        Args:
            name: Name of the decision, unique on the model.
            make: Takes the decision: tensors or lists with one entry a row.

        Raises:
            NotPackableError: If rows hold several texts; callers then pad.
            ArchitectureError: If the call continues a KV cache whose prompts were read without this
                decision, or by several tokens, which may be the rest of a prompt.
        """
        if self.packed:
            raise NotPackableError
        if self.refusal:
            raise ArchitectureError(self.refusal)
        if name not in self.decisions:
            if not self.begins:
                raise ArchitectureError(
                    "this call continues a KV cache that was filled before the present edits came "
                    "into force, so nothing was decided for its prompts; read the prompts again"
                )
            self.decisions[name] = make()
        found: T = self.decisions[name]
        return found


class ModelCalls:
    """Watches the calls of one model, so that modules inside know prompts from answers.

    A call without a KV cache reads prompts. They end where :meth:`within` says; in somebody else's
    call, at the last token that is no padding, and inside `generate` at the last one that it was
    given. A call that continues a cache keeps the decisions that were taken when the cache was
    filled, by the edits that are in force still; outside of `generate` by one token a row, since
    several may be the rest of a prompt.
    """

    def __init__(self) -> None:
        self._number = next(_NUMBERS)  # of these edits: other ones are attached with a new watch
        self._running: dict[int, list[ModelCall | None]] = {}
        self._ends: dict[int, Sequence[int]] = {}
        self._generations: dict[int, Generation] = {}

    @property
    def current(self) -> ModelCall:
        """The call that is running in this thread.

        Raises:
            ArchitectureError: If none is, since a part of the model was called alone.
        """
        running = self._running.get(threading.get_ident())
        if not running or running[-1] is None:
            raise ArchitectureError(
                "a module with edits that act at run time was called outside a call of its model, "
                "so it cannot know which tokens are the prompt; call the whole model (gradient "
                "checkpointing recomputes modules alone: switch it off, or undo the edits)"
            )
        return running[-1]

    @contextmanager
    def within(self, prompt_ends: Sequence[int] | None) -> Iterator[None]:
        """Say where the prompts of the calls inside the block end.

        Args:
            prompt_ends: Position of the last token of the prompt in each row; ``None``: at the last
                token that is no padding.
        """
        thread = threading.get_ident()
        before = self._ends.pop(thread, None)
        if prompt_ends is not None:
            self._ends[thread] = prompt_ends
        try:
            yield
        finally:
            self._ends.pop(thread, None)
            if before is not None:
                self._ends[thread] = before

    def watch(self, model: nn.Module) -> Callable[[], None]:
        """Watch the calls of a model.

        Args:
            model: A Hugging Face language model; of two stacks the calls of each are watched, since
                a generation calls the encoder alone.

        Returns:
            What ends the watch and leaves the model as it was.
        """
        removes = [
            add_hooks(module, partial(self._begin, stack), self._end, with_kwargs=True, always=True)
            for module, stack in _watched(model).items()
        ]
        model.__dict__[_CALLS] = self
        if not _has_two_stacks(model):  # the encoder of two stacks reads whole prompts, once
            WatchedGenerate.put(unwrapped(model), self._generate)
        return _EndOfWatch(model, removes)

    def _generate(self, generation: Generation) -> Callable[[], None]:
        """Note that a `generate` begins in this thread; return what notes its end."""
        thread = threading.get_ident()
        before = self._generations.get(thread)
        self._generations[thread] = generation

        def end() -> None:
            del self._generations[thread]
            if before is not None:
                self._generations[thread] = before

        return end

    def _begin(
        self,
        stack: Stack | None,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        running = self._running.setdefault(threading.get_ident(), [])
        # `_end` is called even if the line after this one raises.
        running.append(running[-1] if running else None)
        if running[-1] is None:
            running[-1] = self._call(stack, module, args, kwargs)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        thread = threading.get_ident()
        running = self._running[thread]
        call = running.pop()
        if not running:
            del self._running[thread]
        cache = getattr(output, "past_key_values", None)
        if cache is not None and call is not None:  # one that the model made itself
            cache.__dict__.setdefault(_KEPT, call.decisions)

    def _call(
        self,
        stack: Stack | None,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> ModelCall:
        named = named_inputs(module, args, kwargs)
        given = [named.get("input_ids"), named.get("inputs_embeds"), *args[:1]]
        ids = next(one for one in given if one is not None)
        rows, length = ids.shape[:2]
        cache = named.get("past_key_values")
        filled = 0 if cache is None else int(cache.get_seq_length())
        thread = threading.get_ident()
        # A prompt's end is told for what reads it: with two stacks the encoder.
        ends = None if stack == "decoder" else self._ends.get(thread)
        generation = None if stack is not None else self._generations.get(thread)
        decisions = self._decisions(cache, filled, rows)
        known = bool(decisions.get(_KNOWN))
        own = generation is not None and generation.reads(ids, filled)
        real = None
        if generation is not None and own and not filled:
            real = generation.real_positions(rows, length)
        if real is None:
            real = real_positions(named.get("attention_mask"), rows, length, filled)
        real = real.to(ids.device)
        if generation is not None and own:
            places = generation.prompt_ends(real, filled, known)
        else:
            places = last_real(real)
        refusal = ""
        goes_on = generation is not None and (known or generation.is_draft)
        if filled and length > 1 and stack is None and ends is None and not goes_on:
            refusal = (
                f"{length} tokens a row are read behind a KV cache of {filled}, and edits on this "
                "model decide at the end of a whole prompt, which may be among them or before; "
                "read whole texts without a cache, continue by one token, or use `generate`"
            )
        if not filled:
            decisions[_KNOWN] = ends is not None or own
        if stack == "decoder":
            places = real.long().argmax(1)
        elif ends is not None:
            places = torch.tensor(ends, device=ids.device)
        # Rows hold several texts also where their lengths are given (padding-free batches).
        packed = named.get("cu_seq_lens_q") is not None
        packed = packed or (hasattr(module, "config") and _replaced(module))
        return ModelCall(places, real, not filled, decisions, packed, refusal)

    def _decisions(self, cache: Any, filled: int, rows: int) -> dict[str, Any]:
        """Return the decisions in a KV cache; new ones where it is empty or there is none."""
        if not filled:
            new = {_ROWS: rows, _WATCH: self._number}
            if cache is not None:
                cache.__dict__[_KEPT] = new
            return new
        found: dict[str, Any] = cache.__dict__.get(_KEPT, {})
        if found.get(_ROWS, rows) != rows:
            raise ArchitectureError(
                f"a KV cache of {found[_ROWS]} prompts is continued with {rows} rows, so "
                "decisions of edits cannot be told apart; read the prompts again"
            )
        return found if found.get(_WATCH) == self._number else {}


@dataclass(frozen=True)
class _EndOfWatch:
    """Ends the watch of a model; a copy of it, made together with the model, that of the copy."""

    model: nn.Module
    removes: list[Callable[[], None]]

    def __call__(self) -> None:
        del self.model.__dict__[_CALLS]
        WatchedGenerate.remove(unwrapped(self.model))
        for remove in self.removes:
            remove()


def _watched(model: Any) -> dict[nn.Module, Stack | None]:
    """Return the modules whose calls are watched: the model, or each of its two stacks."""
    if _has_two_stacks(model):
        return {model.get_encoder(): "encoder", model.get_decoder(): "decoder"}
    own = unwrapped(model)  # PEFT's wrapper generates with the model inside
    base = getattr(own, "base_model", own)  # feature extractors call it alone
    return dict.fromkeys((model, own, base))


def _has_two_stacks(model: Any) -> bool:
    """Return whether a model has an encoder beside its decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def calls_of(model: nn.Module) -> ModelCalls | None:
    """Return what watches a model's calls: an editor in force that decides once a prompt.

    Args:
        model: A language model.

    Returns:
        The watch, or ``None`` if nothing on the model decides by prompt.
    """
    found = model.__dict__.get(_CALLS)
    return found if isinstance(found, ModelCalls) else None


def telling(model: nn.Module, prompt_ends: Sequence[int] | None) -> AbstractContextManager[None]:
    """Tell edits on a model that decide once a prompt where the prompts of the next calls end.

    Args:
        model: A language model, with such edits or without.
        prompt_ends: Position of the last token of the prompt in each row; ``None``: at the last
            token that is no padding.
    """
    calls = calls_of(model)
    return nullcontext() if calls is None else calls.within(prompt_ends)


def _replaced(model: nn.Module) -> bool:
    """Return whether the model's attention is replaced, so that rows hold several texts."""
    config: Any = model.config
    name = str(getattr(config, "_attn_implementation", ""))
    return name.startswith("paged|") or (name.startswith("lightning_edit_") and not packable(model))
