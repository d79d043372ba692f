"""Run only the part of a language model that a change at one token of one block can reach.

A vector added at token s of block ℓ changes neither the tokens before s (attention looks back only)
nor the blocks below ℓ. So the tokens before s go through the model once and stay in its key-value
cache, the hidden states that enter block ℓ are kept, and every further pass runs the blocks from ℓ
on over the tokens from s on. Where the model's attention can be replaced, these tokens stand in one
row without padding (:mod:`~lightning_edit.inference.packed.layout`), else padded right. Nothing
here knows a model family: the cache, the masks and the block calls are the model's own.

Axis names: ``r`` -- texts; ``b`` -- rows that the model sees, r or 1; ``t`` -- their tokens, from s
of each text on; ``d`` -- hidden width; ``f`` -- width of a key; ``m`` -- places read; ``v`` --
words; ``w`` -- width of the site: d, or 2d where vectors for attention and MLP stand side by side.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.inference.hooks import (
    replace_output,
    returning,
    select_head_positions,
)
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.layout import Packing, attending
from lightning_edit.inference.suffix.position_subset import run_at_positions
from lightning_edit.inference.suffix.projection_cache import ProjectionCache
from lightning_edit.models.view import ModelView

Site = Literal["mlp", "block", "attention+mlp"]


@dataclass(frozen=True)
class SuffixForward:
    """Texts whose lower and earlier parts are computed; :meth:`logits` runs the rest.

    Make it with :func:`~lightning_edit.inference.suffix.build.split`.

    Args:
        view: The language model's structure.
        block: Number ℓ of the block at which vectors are added.
        site: Whether they are added to the output of its MLP, of the block, or one to that of its
            attention and one to that of its MLP.
        inputs: The model's arguments for the tokens from s on.
        starts: Where token s of each text is, counted over all rows.
        hidden: What the constant blocks hand on; ``None`` when block 0 is not constant.
        initial: Output of the site at s, (r, w).
        keys: Input of block ℓ's MLP down-projection at s, (r, f).
        values: Output of the same layer at s, (r, d).
        tuples: Whether the model's blocks return tuples.
        past: The model's cache of the tokens before s; ``None`` where there are none or
            ``packing`` holds them.
        packing: Which tokens belong to which text, where they stand in one row.
        entering: What the first running block's layers give for tokens that never change; of texts
            in one row.
    """

    view: ModelView
    block: int
    site: Site
    inputs: dict[str, Tensor]
    starts: Int[Tensor, " r"]
    hidden: Float[Tensor, "b t d"] | None
    initial: Float[Tensor, "r w"]
    keys: Float[Tensor, "r f"]
    values: Float[Tensor, "r d"]
    tuples: bool
    past: Any = None
    packing: Packing | None = None
    entering: ProjectionCache = field(default_factory=ProjectionCache)

    @property
    def constant_blocks(self) -> int:
        """How many of the lowest blocks never run again."""
        return self.block + 1 if self.site == "block" else self.block

    @property
    def parts(self) -> int:
        """How many vectors stand side by side."""
        return 2 if self.site == "attention+mlp" else 1

    def logits(
        self, added: Float[Tensor, "r w"], rows: Int[Tensor, " m"], positions: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        """Run the upper blocks with a vector added at token s of every row.

        Args:
            added: The vectors; gradients flow to them.
            rows: Texts that are read.
            positions: Positions that are read, counted from s.

        Returns:
            Logits, float32 unless the model is float64.
        """
        places = self.starts[rows] + positions
        width = self.inputs["input_ids"].shape[1]
        index = places // width, places % width
        with ExitStack() as stack:
            stack.enter_context(_constant(self, added))
            stack.enter_context(select_head_positions(self.view.model, index))
            if self.block < self.view.num_blocks - 1:
                # What the last block gives elsewhere, nobody reads.
                stack.enter_context(run_at_positions(self.view, places))
            if self.site != "block":
                for name, part in zip(
                    changed_modules(self.view, self.block, self.site),
                    added.chunk(self.parts, dim=1),
                    strict=True,
                ):
                    stack.enter_context(_adding(self, name, part))
            output = self._run(stack)
        logits: Tensor = output.logits.squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _run(self, stack: ExitStack) -> Any:
        """Call the model; what is entered into the stack holds for the call."""
        if self.packing is None:
            return self.view.model(**self.inputs, **cache_arguments(self.past))
        ran = stack.enter_context(attending(self.view, self.packing))
        stack.enter_context(self.entering.running(self.starts, ran))
        output = self.view.model(**self.inputs, use_cache=False)
        if ran != list(range(self.constant_blocks, self.view.num_blocks)):
            raise NotPackableError
        return output

    def at_subject(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "r d"]:
        """Return what a module gave for token s of every text.

        Args:
            hidden: Its output in a pass of :meth:`logits`.
        """
        return hidden.flatten(0, 1)[self.starts]

    def select(self, rows: Int[Tensor, " r"]) -> "SuffixForward":
        """Return the tail of some texts only."""
        past, packing, entering = None, None, self.entering
        if self.packing is not None:
            packing = self.packing.select(rows)
            tokens = packing.tokens(self.starts[rows])
            inputs = {name: value.index_select(1, tokens) for name, value in self.inputs.items()}
            hidden = None if self.hidden is None else self.hidden.index_select(1, tokens)
            starts = packing.starts
            entering = self.entering.select(tokens)
        else:
            inputs = {name: value[rows] for name, value in self.inputs.items()}
            hidden = None if self.hidden is None else self.hidden[rows]
            starts = torch.arange(len(rows), device=rows.device) * inputs["input_ids"].shape[1]
        if self.past is not None:
            past = copy.copy(self.past)
            past.layers = [
                cache_rows(layer, rows if number >= self.constant_blocks else None)
                for number, layer in enumerate(self.past.layers)
            ]
        return replace(
            self,
            inputs=inputs,
            starts=starts,
            past=past,
            hidden=hidden,
            initial=self.initial[rows],
            keys=self.keys[rows],
            values=self.values[rows],
            packing=packing,
            entering=entering,
        )


def changed_modules(view: ModelView, block: int, site: Site) -> tuple[str, ...]:
    """Return the modules to whose outputs vectors are added."""
    parts = view.block(block)
    if site == "block":
        return (parts.name,)
    return (parts.mlp,) if site == "mlp" else (parts.attention_out, parts.mlp)


def _adding(tail: SuffixForward, name: str, added: Tensor) -> AbstractContextManager[None]:
    """Add a vector a text at token s of a module's output."""
    model, starts = tail.view.model, tail.starts
    module = model.get_submodule(name)
    return replace_output(module, lambda output: add_at(output, added, starts), within=model)


def cache_arguments(past: Any) -> dict[str, Any]:
    """Return the cache arguments of one call; the call appends to a copy, never to ``past``."""
    if past is None:
        return {"use_cache": False}
    fresh = copy.copy(past)
    # Layers replace their tensors when they grow, so a shallow copy keeps the prefix as it is.
    fresh.layers = [copy.copy(layer) for layer in past.layers]
    return {"past_key_values": fresh, "use_cache": True}


def cache_rows(layer: Any, rows: Tensor | None) -> Any:
    """Return a cache layer of some rows; of a constant block only the length is ever asked for."""
    chosen = copy.copy(layer)
    if rows is not None:
        chosen.keys, chosen.values = layer.keys[rows], layer.values[rows]
    return chosen


def add_at(output: Tensor, added: Tensor, starts: Tensor) -> Tensor:
    """Add one vector a text at its token s."""
    flat = output.flatten(0, 1)
    # Written, not added: half of what is kept would be rounded again.
    first = (flat[starts] + added).to(output.dtype)
    return flat.index_copy(0, starts, first).view(output.shape)


@contextmanager
def _constant(tail: SuffixForward, added: Tensor) -> Iterator[None]:
    """Let the constant blocks return what is kept instead of running."""
    with ExitStack() as stack:
        if tail.hidden is not None:
            kept = add_at(tail.hidden, added, tail.starts) if tail.site == "block" else tail.hidden
            *lower, last = [block.module for block in tail.view.blocks[: tail.constant_blocks]]
            for module in lower:
                stack.enter_context(returning(module, None, tail.tuples))
            stack.enter_context(returning(last, kept, tail.tuples))
        yield
