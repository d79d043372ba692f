"""Suffix forward: run only the blocks and tokens that a change at one token can reach.

A vector added at token s of block ℓ changes neither the tokens before s (attention is causal)
nor the blocks below ℓ. So the tokens before s go through the model once and stay in its KV cache,
the hidden states that enter block ℓ are stored, and every further pass runs the blocks from ℓ on
over the tokens from s on. Where the model's attention can be replaced, these tokens are packed in
one row without padding (:mod:`~lightning_edit.inference.packed.layout`), else padded on the right.
Nothing here knows a model family: the cache, the masks and the block calls are the model's own.

Axis names: ``r`` -- texts; ``b`` -- rows that the model sees, r or 1; ``t`` -- their tokens, from s
of each text on; ``d`` -- hidden width; ``f`` -- width of a key; ``m`` -- positions read; ``v`` --
vocabulary; ``o`` -- tokens at which the head runs; ``w`` -- width of the site: d, or 2d for
concatenated vectors of attention and MLP.
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
    capture,
    replace_output,
    returning,
    select_head_positions,
)
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.layout import RowLayout, packed_attention
from lightning_edit.inference.suffix.position_subset import run_at_positions
from lightning_edit.inference.suffix.products import Products
from lightning_edit.inference.suffix.projection_cache import ProjectionCache
from lightning_edit.models.view import ModelView

Site = Literal["mlp", "block", "attention+mlp"]

#: Numbers that the passes of a search may store for their gradient on a CPU: 1 GiB in float32.
_STORED = 2**28
#: Tokens of a text from its subject's last one on, which are those that run.
_USUAL_TOKENS = 8


def texts_per_pass(view: ModelView) -> int:
    """Return how many texts a pass on a CPU takes, so that what it stores fits in about 1 GiB.

    More texts read the weights less often and multiply larger matrices. The model alone decides, so
    that the layout, and with it the last bits, are the same on every machine.

    Args:
        view: The language model's structure.
    """
    # A block stores about eight vectors of the hidden width and four of the MLP's for each token.
    token = view.num_blocks * (8 * view.hidden_size + 4 * view.intermediate_size)
    return min(448, max(32, _STORED // (_USUAL_TOKENS * token)))


@dataclass(frozen=True)
class HeadPlaces:
    """Positions at which the head runs, in the rows that the model sees.

    Args:
        index: Row and position of each.
        once: Indices over all rows of the tokens among them, rising and each once; ``None`` where
            they are all tokens.
    """

    index: tuple[Int[Tensor, " m"], Int[Tensor, " m"]]
    once: Int[Tensor, " o"] | None


@dataclass(frozen=True)
class SuffixForward:
    """Cached lower blocks and earlier tokens of texts; :meth:`logits` runs the remaining suffix.

    Make it with :func:`~lightning_edit.inference.suffix.build.build_suffix_forward`.

    Args:
        view: The language model's structure.
        block: Number ℓ of the block at which vectors are added.
        site: Output to which they are added: of its MLP, the block, or one each of attention and
            MLP.
        inputs: The model's arguments for the tokens from s on.
        starts: Index of token s of each text, counted over all rows.
        hidden: Output of the constant blocks; ``None`` if block 0 is not constant.
        initial: Output of the site at s, (r, w).
        keys: Input of block ℓ's MLP down-projection at s, (r, f).
        values: Output of the same layer at s, (r, d).
        tuples: Whether the model's blocks return tuples.
        past: The model's KV cache of the tokens before s; ``None`` if there are none or ``packing``
            holds them.
        packing: Assignment of tokens to texts, if they are packed in one row.
        projections: Projections of unchanged tokens in the first running block; packed texts only.
        products: How the running blocks and the head multiply; ``None``: as the model does.
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
    packing: RowLayout | None = None
    projections: ProjectionCache = field(default_factory=ProjectionCache)
    products: Products | None = None

    def for_search(self) -> "SuffixForward":
        """Return this suffix forward for many passes, while which no weight of the model changes.

        Its products may be others than the model's (:mod:`~.products`); their gradients reach
        hidden states, but no weights.
        """
        return replace(self, products=Products(self.view, self.constant_blocks))

    @property
    def constant_blocks(self) -> int:
        """Number of lowest blocks that never run again."""
        return self.block + 1 if self.site == "block" else self.block

    @property
    def parts(self) -> int:
        """Number of concatenated vectors: 2 for attention and MLP, else 1."""
        return 2 if self.site == "attention+mlp" else 1

    def logits(
        self, added: Float[Tensor, "r w"], rows: Int[Tensor, " m"], positions: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        """Return logits of the upper blocks, with a vector added at token s of every text.

        Args:
            added: The vectors; gradients flow to them.
            rows: Index of the text at each position read.
            positions: Positions read, counted from s.

        Returns:
            Logits, float32 unless the model is float64.
        """
        return self.logits_at(added, self.places(rows, positions))

    def places(self, rows: Int[Tensor, " m"], positions: Int[Tensor, " m"]) -> HeadPlaces:
        """Return where positions lie in the rows that the model sees, for many passes.

        Args:
            rows: Index of the text at each position read.
            positions: Positions read, counted from s.
        """
        places = self.starts[rows] + positions
        width, tokens = self.inputs["input_ids"].shape[1], self.inputs["input_ids"].numel()
        # A position may be read twice (answer and watched token), but is computed once.
        once = torch.unique(places)
        return HeadPlaces((places // width, places % width), once if len(once) < tokens else None)

    def logits_at(self, added: Float[Tensor, "r w"], places: HeadPlaces) -> Float[Tensor, "m v"]:
        """Return logits at places in the rows; see :meth:`logits`.

        Args:
            added: The vectors; gradients flow to them.
            places: From :meth:`places`.
        """
        with ExitStack() as stack:
            stack.enter_context(_skip_constant_blocks(self, added))
            stack.enter_context(select_head_positions(self.view.model, places.index))
            if self.products is not None:
                stack.enter_context(self.products.used(self.inputs["input_ids"].numel()))
            if places.once is not None and self.block < self.view.num_blocks - 1:
                # The last block's output at other positions is never read.
                stack.enter_context(run_at_positions(self.view, places.once))
            if self.site != "block":
                for name, part in zip(
                    changed_modules(self.view, self.block, self.site),
                    added.chunk(self.parts, dim=1),
                    strict=True,
                ):
                    stack.enter_context(_add_to_output(self, name, part))
            output = self._run(stack)
        logits: Tensor = output.logits.squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _run(self, stack: ExitStack) -> Any:
        """Call the model; contexts entered into the stack hold for the call."""
        if self.packing is None:
            return self.view.model(**self.inputs, **cache_arguments(self.past))
        ran = stack.enter_context(packed_attention(self.view, self.packing))
        stack.enter_context(self.projections.reuse(self.starts, ran))
        output = self.view.model(**self.inputs, use_cache=False)
        if ran != list(range(self.constant_blocks, self.view.num_blocks)):
            raise NotPackableError
        return output

    @torch.no_grad()
    def block_output(self, added: Float[Tensor, "r w"]) -> Float[Tensor, "r d"]:
        """Return block ℓ's output at token s of every text, with a vector added at the site.

        Args:
            added: The vectors.
        """
        none = torch.empty(0, dtype=torch.long, device=added.device)
        name = self.view.block(self.block).name
        with capture(self.view.model, {name: "output"}, stop=True) as captured:
            self.logits(added, none, none)
        return self.at_subject(captured[name])

    def at_subject(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "r d"]:
        """Return a module's output at the subject token s of every text.

        Args:
            hidden: Its output in a pass of :meth:`logits`.
        """
        return hidden.flatten(0, 1)[self.starts]

    def select(self, rows: Int[Tensor, " r"]) -> "SuffixForward":
        """Return the suffix forward of some texts only."""
        past, packing, projections = None, None, self.projections
        if self.packing is not None:
            packing = self.packing.select(rows)
            tokens = packing.tokens(self.starts[rows])
            inputs = {name: value.index_select(1, tokens) for name, value in self.inputs.items()}
            hidden = None if self.hidden is None else self.hidden.index_select(1, tokens)
            starts = packing.starts
            projections = self.projections.select(tokens)
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
            projections=projections,
        )


def changed_modules(view: ModelView, block: int, site: Site) -> tuple[str, ...]:
    """Return the names of the modules whose outputs get the added vectors.

    The MLP's is its down-projection, which is what edits change: BLOOM's and MPT's MLP modules
    return the sum with the hidden state.
    """
    parts = view.block(block)
    if site == "block":
        return (parts.name,)
    return (parts.mlp_down,) if site == "mlp" else (parts.attention_out, parts.mlp_down)


def _add_to_output(suffix: SuffixForward, name: str, added: Tensor) -> AbstractContextManager[None]:
    """Add one vector per text at token s of a module's output."""
    model, starts = suffix.view.model, suffix.starts
    module = model.get_submodule(name)
    return replace_output(module, lambda output: add_at(output, added, starts), within=model)


def cache_arguments(past: Any) -> dict[str, Any]:
    """Return the KV-cache arguments of one call; it appends to a copy, never to ``past``."""
    if past is None:
        return {"use_cache": False}
    fresh = copy.copy(past)
    # Cache layers replace their tensors when they grow, so a shallow copy keeps the prefix.
    fresh.layers = [copy.copy(layer) for layer in past.layers]
    return {"past_key_values": fresh, "use_cache": True}


def cache_rows(layer: Any, rows: Tensor | None) -> Any:
    """Select rows of a KV-cache layer; of a constant block only the length is ever used."""
    chosen = copy.copy(layer)
    if rows is not None:
        chosen.keys, chosen.values = layer.keys[rows], layer.values[rows]
    return chosen


def add_at(output: Tensor, added: Tensor, starts: Tensor) -> Tensor:
    """Add one vector per text at its token s."""
    flat = output.flatten(0, 1)
    # Summed before the cast: adding in half precision would round a second time.
    first = (flat[starts] + added).to(output.dtype)
    return flat.index_copy(0, starts, first).view(output.shape)


@contextmanager
def _skip_constant_blocks(suffix: SuffixForward, added: Tensor) -> Iterator[None]:
    """Skip the constant blocks: return the stored hidden states instead of running them."""
    with ExitStack() as stack:
        if suffix.hidden is not None:
            stored = (
                add_at(suffix.hidden, added, suffix.starts)
                if suffix.site == "block"
                else suffix.hidden
            )
            *lower, last = [block.module for block in suffix.view.blocks[: suffix.constant_blocks]]
            for module in lower:
                stack.enter_context(returning(module, None, suffix.tuples))
            stack.enter_context(returning(last, stored, suffix.tuples))
        yield
