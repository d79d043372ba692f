"""Build a suffix forward: prefix KV cache and activations that an edit cannot change.

Where the model's attention can be replaced, the tokens of all texts are packed in one row without
padding (:mod:`~lightning_edit.inference.packed.forward`). Elsewhere each text is one row, with the
model's own KV cache for the tokens before.

Axis names: ``r`` -- texts; ``t`` -- their tokens; ``d`` -- hidden width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import Side, capture, returns_tuples, select_head_positions
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.forward import PackedRow, TextSpan, prefill, prefill_prefixes
from lightning_edit.inference.suffix.forward import (
    Site,
    SuffixForward,
    add_at,
    cache_arguments,
    cache_rows,
    changed_modules,
)
from lightning_edit.inference.suffix.products import Products
from lightning_edit.inference.suffix.projection_cache import ProjectionCache
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView


def build_suffix_forward(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site
) -> SuffixForward:
    """Build the suffix forward, with all that a vector added at the subject token cannot change.

    Args:
        view: The language model's structure.
        texts: The texts, one row each.
        block: Number of the block at which vectors will be added.
        site: Output to which they are added: of its MLP, of the block, or of attention and MLP.

    Returns:
        The suffix forward of all texts.
    """
    return next(build_suffix_forwards(view, texts, [block], site))


def build_suffix_forwards(
    view: ModelView, texts: Sequence[TokenizedText], blocks: Sequence[int], site: Site
) -> Iterator[SuffixForward]:
    """Build suffix forwards of the same texts at several blocks, one after the other.

    The tokens before the subject token are read once for all blocks. Use each suffix forward to its
    end before the next is taken: packed ones share the room for their texts' keys and values.

    Args:
        view: The language model's structure.
        texts: The texts, one row each.
        blocks: Numbers of the blocks.
        site: Output to which vectors are added; see :func:`build_suffix_forward`.

    Yields:
        The suffix forward of each block.
    """
    row = _packed(view, texts)
    for block in blocks:
        yield _build(view, texts, block, site, row)


def _products(view: ModelView, texts: Sequence[TokenizedText]) -> AbstractContextManager[None]:
    # As in the passes of the search, and each weight is used too seldom to be packed.
    return Products(view, 0).used(sum(len(text.ids) for text in texts))


@torch.no_grad()
def _packed(view: ModelView, texts: Sequence[TokenizedText]) -> PackedRow | None:
    """Return the texts from the subject token on in one row, or nothing where they are padded."""
    if len(texts) == 1:  # no padding to save, and fewer operators in every step
        return None
    try:
        with _products(view, texts):
            return _read_before(view, texts)
    except NotPackableError:
        return None


def _read_before(view: ModelView, texts: Sequence[TokenizedText]) -> PackedRow:
    """Read the tokens before the subject tokens, and pack the others in one row."""
    top = view.num_blocks - 1
    pool, prefixes = prefill_prefixes(view, [text.ids[: text.lead] for text in texts], top)
    between = [
        TextSpan(text.ids[text.lead : text.subject], lead)
        for text, lead in zip(texts, prefixes, strict=True)
    ]
    # Texts of one request may differ only after the subject.
    unique = [span for span in dict.fromkeys(between) if span.ids]
    pool, places = prefill(view, unique, pool, top)
    found = dict(zip(unique, places, strict=True))
    after = [
        TextSpan(text.ids[text.subject :], (*span.earlier, *found.get(span, ())))
        for text, span in zip(texts, between, strict=True)
    ]
    return PackedRow.of(view, after, pool)


@torch.no_grad()
def _build(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site, row: PackedRow | None
) -> SuffixForward:
    with _products(view, texts):
        if row is not None:
            try:
                return _build_packed(view, row, block, site)
            except NotPackableError:
                pass
        return _build_padded(view, texts, block, site)


def _build_packed(view: ModelView, row: PackedRow, block: int, site: Site) -> SuffixForward:
    """Build the suffix forward of texts packed in one row, without padding."""
    wanted = _capture_sides(view, block, site)
    with returns_tuples(view.block(block).module) as tuples:
        captured = row.read(view, wanted, block)
    starts = row.packing.starts
    suffix = _assemble(
        view, block, site, captured, tuples[0], row.inputs, starts, packing=row.packing
    )
    projections = (
        ProjectionCache.of(view, suffix.constant_blocks)
        if suffix.site == "block"
        else ProjectionCache()
    )
    return replace(
        suffix,
        packing=row.packing.drop_blocks_below(suffix.constant_blocks),
        projections=projections,
    )


def _build_padded(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site
) -> SuffixForward:
    """Build the suffix forward of texts in padded rows, with the model's own KV cache."""
    past, rest = _prefill_cache(view, texts)
    with (
        returns_tuples(view.block(block).module) as tuples,
        capture(view.model, _capture_sides(view, block, site), stop=True) as captured,
    ):
        view.model(**rest, **cache_arguments(past))
    count, width = rest["input_ids"].shape
    starts = torch.arange(count, device=rest["input_ids"].device) * width
    return _assemble(view, block, site, captured, tuples[0], rest, starts, past=past)


def _capture_sides(view: ModelView, block: int, site: Site) -> dict[str, Side]:
    parts = view.block(block)
    names = (parts.name, _input_module(view, block, site), *changed_modules(view, block, site))
    # The down-projection comes last: where it is the whole MLP (OPT), both its sides are wanted.
    wanted: dict[str, Side] = dict.fromkeys(names, "output")
    wanted.pop(parts.mlp_down, None)
    return wanted | {parts.mlp_down: "both"}


def _input_module(view: ModelView, block: int, site: Site) -> str:
    """Return the module whose output is the input of the first block that runs again."""
    if site != "block" and block > 0:
        return view.blocks[block - 1].name
    return changed_modules(view, block, site)[-1]


def _assemble(
    view: ModelView,
    block: int,
    site: Site,
    captured: Mapping[str, Tensor],
    tuples: bool,
    inputs: dict[str, Tensor],
    starts: Int[Tensor, " r"],
    **earlier: Any,
) -> SuffixForward:
    """Assemble the suffix forward from what a pass over the tokens from s on captured."""
    parts = view.block(block)
    values = captured[f"{parts.mlp_down}@output"].flatten(0, 1)[starts]
    changed = [
        captured[name].flatten(0, 1)[starts] if name in captured else values
        for name in changed_modules(view, block, site)
    ]
    suffix = SuffixForward(
        view=view,
        block=block,
        site=site,
        inputs=inputs,
        starts=starts,
        hidden=captured[_input_module(view, block, site)] if site == "block" or block > 0 else None,
        initial=torch.cat(changed, dim=1),
        keys=captured[f"{parts.mlp_down}@input"].flatten(0, 1)[starts],
        values=values,
        tuples=tuples,
        **earlier,
    )
    output = captured[parts.name]
    if site == "mlp" and _reaches_block_output(suffix, output):
        return replace(suffix, site="block", hidden=output)
    return suffix


def _reaches_block_output(suffix: SuffixForward, output: Float[Tensor, "r t d"]) -> bool:
    """Return whether a vector added to the MLP's output reaches the block's output unchanged.

    It does unless a norm or a factor lies between (Gemma 2, Granite); a trial on one row decides.
    """
    one = suffix.select(torch.tensor([0], device=output.device))
    before = output.flatten(0, 1)[suffix.starts[0] :][None, : one.inputs["input_ids"].shape[1]]
    added, empty = before[:, 0], torch.empty(0, dtype=torch.long, device=output.device)
    name = suffix.view.block(suffix.block).name
    with capture(suffix.view.model, {name: "output"}, stop=True) as captured:
        one.logits(added, empty, empty)
    change = captured[name] - before
    wanted = add_at(torch.zeros_like(change), added, one.starts)
    return bool((change - wanted).norm() < 0.01 * added.norm())


def _prefill_cache(
    view: ModelView, texts: Sequence[TokenizedText]
) -> tuple[Any, dict[str, Tensor]]:
    """Return the KV cache of the tokens before s, and the model's arguments from s on.

    A template prefix that many texts share goes through the model once and is copied.
    """
    device = view.embeddings.get_parameter("weight").device
    lead = max(text.lead for text in texts)
    before = lead + max(text.subject - text.lead for text in texts)
    ids = torch.zeros(len(texts), before + max(len(text.ids) - text.subject for text in texts))
    ids, mask = ids.long(), torch.ones_like(ids, dtype=torch.long)
    for row, text in enumerate(texts):
        start = before - (text.subject - text.lead)
        ids[row, lead - text.lead : lead] = torch.tensor(text.ids[: text.lead])
        ids[row, start : start + len(text.ids) - text.lead] = torch.tensor(text.ids[text.lead :])
        mask[row, : lead - text.lead] = mask[row, lead:start] = 0
    # Right padding is never attended to; it repeats the last position, to stay in range.
    last = torch.tensor([[len(text.ids) - 1] for text in texts])
    positions = torch.minimum(mask.cumsum(1) - 1, last).clamp_min(0)
    ids, positions, mask = ids.to(device), positions.to(device), mask.to(device)

    def slice_inputs(start: int, stop: int, rows: Any = slice(None)) -> dict[str, Tensor]:
        return {
            "input_ids": ids[rows, start:stop],
            "position_ids": positions[rows, start:stop],
            "attention_mask": mask[rows, :stop],
        }

    def run(past: Any, inputs: dict[str, Tensor]) -> Any:
        empty = torch.empty(0, dtype=torch.long, device=device)
        if "past_key_values" not in signature(view.model.forward).parameters:
            raise ArchitectureError(
                f"{type(view.model).__name__} has no KV cache (`past_key_values`), which target "
                "search keeps the tokens before the subject in; use a method without a target "
                "search, such as FT, or another model"
            )
        with select_head_positions(view.model, (empty, empty)):
            return view.model(**inputs, past_key_values=past, use_cache=True).past_key_values

    past = None
    if lead:
        unique = {text.ids[: text.lead]: row for row, text in enumerate(texts)}
        past = run(None, slice_inputs(0, lead, torch.tensor(list(unique.values()), device=device)))
        order = {kind: number for number, kind in enumerate(unique)}
        copies = torch.tensor([order[text.ids[: text.lead]] for text in texts], device=device)
        past.layers = [cache_rows(layer, copies) for layer in past.layers]
    if before > lead:
        past = run(past, slice_inputs(lead, before))
    return past, slice_inputs(before, ids.shape[1])
