"""Compute once what a change at one token of one block cannot reach; the rest is a tail.

Where the model's attention can be replaced, the tokens of all texts stand in one row without
padding (:mod:`~lightning_edit.inference.packed.forward`). Elsewhere each text has a row of its own,
with the model's own key-value cache for the tokens before.

Axis names: ``r`` -- texts; ``t`` -- their tokens; ``d`` -- hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.inference.hooks import Side, capture, returns_tuples, select_head_positions
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.forward import PackedRow, Piece, prefill, prefill_prefixes
from lightning_edit.inference.suffix.forward import (
    Site,
    SuffixForward,
    add_at,
    cache_arguments,
    cache_rows,
    changed_modules,
)
from lightning_edit.inference.suffix.projection_cache import ProjectionCache
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView


@torch.no_grad()
def build_suffix_forward(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site
) -> SuffixForward:
    """Compute what a vector added at every text's subject token cannot change.

    Args:
        view: The language model's structure.
        texts: The texts, one row each.
        block: Number of the block at which vectors will be added.
        site: At the output of its MLP, of the block, or of its attention and its MLP.

    Returns:
        The prepared rows.
    """
    try:
        return _in_one_row(view, texts, block, site)
    except NotPackableError:
        return _padded(view, texts, block, site)


def _in_one_row(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site
) -> SuffixForward:
    """Split where all texts stand in one row."""
    top = view.num_blocks - 1
    pool, leads = prefill_prefixes(view, [text.ids[: text.lead] for text in texts], top)
    between = [
        Piece(text.ids[text.lead : text.subject], lead)
        for text, lead in zip(texts, leads, strict=True)
    ]
    # Texts of one request may differ behind the subject only.
    kinds = [piece for piece in dict.fromkeys(between) if piece.ids]
    pool, places = prefill(view, kinds, pool, top)
    found = dict(zip(kinds, places, strict=True))
    after = [
        Piece(text.ids[text.subject :], (*piece.earlier, *found.get(piece, ())))
        for text, piece in zip(texts, between, strict=True)
    ]
    row = PackedRow.of(view, after, pool)
    wanted = _wanted(view, block, site)
    with returns_tuples(view.block(block).module) as tuples:
        seen = row.read(view, wanted, block)
    starts = row.packing.starts
    tail = _tail(view, block, site, seen, tuples[0], row.inputs, starts, packing=row.packing)
    entering = (
        ProjectionCache.of(view, tail.constant_blocks)
        if tail.site == "block"
        else ProjectionCache()
    )
    return replace(tail, packing=row.packing.above(tail.constant_blocks), entering=entering)


def _padded(
    view: ModelView, texts: Sequence[TokenizedText], block: int, site: Site
) -> SuffixForward:
    """Split where every text has a row of its own."""
    past, rest = _past(view, texts)
    with (
        returns_tuples(view.block(block).module) as tuples,
        capture(view.model, _wanted(view, block, site), stop=True) as seen,
    ):
        view.model(**rest, **cache_arguments(past))
    count, width = rest["input_ids"].shape
    starts = torch.arange(count, device=rest["input_ids"].device) * width
    return _tail(view, block, site, seen, tuples[0], rest, starts, past=past)


def _wanted(view: ModelView, block: int, site: Site) -> dict[str, Side]:
    parts = view.block(block)
    names = (parts.name, _below(view, block, site), *changed_modules(view, block, site))
    # The down-projection comes last: where it is the whole MLP (OPT), both its sides are wanted.
    wanted: dict[str, Side] = dict.fromkeys(names, "output")
    wanted.pop(parts.mlp_down, None)
    return wanted | {parts.mlp_down: "both"}


def _below(view: ModelView, block: int, site: Site) -> str:
    """Return the module whose output the first block that runs again gets."""
    if site != "block" and block > 0:
        return view.blocks[block - 1].name
    return changed_modules(view, block, site)[-1]


def _tail(
    view: ModelView,
    block: int,
    site: Site,
    seen: Mapping[str, Tensor],
    tuples: bool,
    inputs: dict[str, Tensor],
    starts: Int[Tensor, " r"],
    **earlier: Any,
) -> SuffixForward:
    """Make a tail of what a pass over the tokens from s on has seen."""
    parts = view.block(block)
    values = seen[f"{parts.mlp_down}@output"].flatten(0, 1)[starts]
    changed = [
        seen[name].flatten(0, 1)[starts] if name in seen else values
        for name in changed_modules(view, block, site)
    ]
    tail = SuffixForward(
        view=view,
        block=block,
        site=site,
        inputs=inputs,
        starts=starts,
        hidden=seen[_below(view, block, site)] if site == "block" or block > 0 else None,
        initial=torch.cat(changed, dim=1),
        keys=seen[f"{parts.mlp_down}@input"].flatten(0, 1)[starts],
        values=values,
        tuples=tuples,
        **earlier,
    )
    output = seen[parts.name]
    if site == "mlp" and _passes_through(tail, output):
        return replace(tail, site="block", hidden=output)
    return tail


def _passes_through(tail: SuffixForward, output: Float[Tensor, "r t d"]) -> bool:
    """Return whether what is added to the MLP's output comes out of the block unchanged.

    It does unless a norm or a factor stands between (Gemma 2, Granite); a trial on one row tells.
    """
    one = tail.select(torch.tensor([0], device=output.device))
    before = output.flatten(0, 1)[tail.starts[0] :][None, : one.inputs["input_ids"].shape[1]]
    added, nothing = before[:, 0], torch.empty(0, dtype=torch.long, device=output.device)
    name = tail.view.block(tail.block).name
    with capture(tail.view.model, {name: "output"}, stop=True) as seen:
        one.logits(added, nothing, nothing)
    change = seen[name] - before
    wanted = add_at(torch.zeros_like(change), added, one.starts)
    return bool((change - wanted).norm() < 0.01 * added.norm())


def _past(view: ModelView, texts: Sequence[TokenizedText]) -> tuple[Any, dict[str, Tensor]]:
    """Return the model's cache of the tokens before s and its arguments from s on.

    What the templates put in front of many texts goes through the model once and is copied.
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
    # Padding on the right is never looked at; it repeats the last position, to stay in range.
    last = torch.tensor([[len(text.ids) - 1] for text in texts])
    positions = torch.minimum(mask.cumsum(1) - 1, last).clamp_min(0)
    ids, positions, mask = ids.to(device), positions.to(device), mask.to(device)

    def cut(start: int, stop: int, rows: Any = slice(None)) -> dict[str, Tensor]:
        return {
            "input_ids": ids[rows, start:stop],
            "position_ids": positions[rows, start:stop],
            "attention_mask": mask[rows, :stop],
        }

    def run(past: Any, inputs: dict[str, Tensor]) -> Any:
        nothing = torch.empty(0, dtype=torch.long, device=device)
        with select_head_positions(view.model, (nothing, nothing)):
            return view.model(**inputs, past_key_values=past, use_cache=True).past_key_values

    past = None
    if lead:
        kinds = {text.ids[: text.lead]: row for row, text in enumerate(texts)}
        past = run(None, cut(0, lead, torch.tensor(list(kinds.values()), device=device)))
        order = {kind: number for number, kind in enumerate(kinds)}
        copies = torch.tensor([order[text.ids[: text.lead]] for text in texts], device=device)
        past.layers = [cache_rows(layer, copies) for layer in past.layers]
    if before > lead:
        past = run(past, cut(lead, before))
    return past, cut(before, ids.shape[1])
