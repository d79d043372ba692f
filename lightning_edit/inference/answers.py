"""Logits that predict answers under teacher forcing, of a model as it is or with changes.

Axis names: ``b`` -- rows (a prompt with its answer); ``a`` -- answer tokens of all rows, row after
row; ``v`` -- vocabulary; ``e`` -- updates; ``r`` -- rank; ``d_in``/``d_out`` -- width of a layer's
input and output.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_edit.inference.answer_pass import logits_at
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import hooked
from lightning_edit.inference.model_call import telling


def answer_logits(
    model: nn.Module,
    batch: AnswerRows,
    parameters: Mapping[str, Tensor] | None = None,
    rows_per_pass: int | None = None,
) -> Float[Tensor, "a v"]:
    """Return the logits that predict the answer tokens, from a teacher-forced pass.

    Args:
        model: A Hugging Face language model.
        batch: Rows on the model's device, made for this model (:meth:`AnswerRows.of`).
        parameters: Values that replace the model's parameters, by name. Gradients then flow to them
            only: the model's own parameters are constants.
        rows_per_pass: Gradient checkpointing: most rows of a pass. Activations of one pass at a
            time are in memory; the backward pass computes them again. ``None``: one or two passes
            whose activations are kept.
    """
    values = _parameter_values(model, parameters) if parameters else {}
    parts, run = _split(batch, rows_per_pass)
    return _restore_order(
        [run(partial(one_pass_logits, model, rows, values)) for rows, _, _ in parts],
        [answers for *_, answers in parts],
    )


_Pass = Callable[[], Tensor]


def _split(
    batch: AnswerRows, rows_per_pass: int | None
) -> tuple[list[tuple[AnswerRows, Tensor, Tensor]], Callable[[_Pass], Tensor]]:
    """Return passes of a batch, and how each is run."""
    if rows_per_pass is None:
        return batch.buckets(), lambda one: one()
    return batch.passes(rows_per_pass), _recomputed


def _recomputed(one: _Pass) -> Tensor:
    """Run a pass whose activations are not kept but computed again in the backward pass."""
    # The whole pass is repeated, hooks and replaced parameters included, which would be gone by
    # then if blocks were repeated. It must end in order, since contexts close behind it.
    with set_checkpoint_early_stop(False):
        logits: Tensor = checkpoint(one, use_reentrant=False, preserve_rng_state=False)
    return logits


def _parameter_values(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()} | dict(parameters)


def _restore_order(parts: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(parts))[torch.cat(tuple(numbers)).argsort()]


def one_pass_logits(
    model: nn.Module, batch: AnswerRows, values: Mapping[str, Tensor]
) -> Float[Tensor, "a v"]:
    """Return the answer tokens' logits of one pass over all rows, whatever their lengths.

    Args:
        model: A Hugging Face language model.
        batch: Rows on the model's device.
        values: Values that replace the model's parameters, by name; empty: its own, with their
            gradients.
    """
    with telling(model, batch.prompt_ends):
        return logits_at(model, batch.inputs, (batch.rows, batch.positions), values)


def answer_logits_each(
    model: nn.Module,
    batch: AnswerRows,
    changes: Mapping[str, tuple[Float[Tensor, "e d_out r"], Float[Tensor, "e r d_in"]]],
    edits: Int[Tensor, " b"],
    rows_per_pass: int | None = None,
) -> Float[Tensor, "a v"]:
    """Return the answer tokens' logits, with a separate low-rank update for each row.

    Args:
        model: A Hugging Face language model.
        batch: Rows on the model's device.
        changes: Low-rank factors of ``e`` alternative updates, by dotted name of the linear layer;
            gradients flow to them only.
        edits: Index of the update that applies to each row.
        rows_per_pass: Gradient checkpointing, see :func:`answer_logits`.
    """
    values = _parameter_values(model, {})
    parts, run = _split(batch, rows_per_pass)
    return _restore_order(
        [
            run(partial(_changed, model, rows, values, changes, edits[part]))
            for rows, part, _ in parts
        ],
        [answers for *_, answers in parts],
    )


def _changed(
    model: nn.Module,
    rows: AnswerRows,
    values: Mapping[str, Tensor],
    changes: Mapping[str, tuple[Tensor, Tensor]],
    edits: Tensor,
) -> Tensor:
    with ExitStack() as stack:
        for name, (left, right) in changes.items():
            hook = partial(_add_change, left[edits], right[edits], rows.ids.shape)
            stack.enter_context(hooked(model.get_submodule(name), after=hook))
        return one_pass_logits(model, rows, values)


def _add_change(
    left: Tensor,
    right: Tensor,
    shape: torch.Size,
    layer: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    # OPT flattens rows and positions to one axis before its MLP.
    hidden = args[0] if args[0].dim() == 3 else args[0].view(*shape, -1)
    inputs = hidden.to(right.dtype)
    change = inputs @ right.mT @ left.mT
    edited: Tensor = output + change.view(output.shape).to(output.dtype)
    return edited
