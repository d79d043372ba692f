"""Per-row loss gradients of answers under teacher forcing, at the answer tokens only.

Axis names: ``b`` -- rows (a prompt with its answer); ``t`` -- positions; ``a`` -- answer tokens of
all rows, row after row; ``d``, ``d_in``, ``d_out`` -- width of the hidden state, of a layer's input
and of its output.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.inference.answer_pass import logits_at, wide
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.hooks import (
    first_tensor,
    hooked,
    record_factors,
)
from lightning_edit.inference.model_call import calls_of, telling
from lightning_edit.inference.packed.backend import NotPackableError
from lightning_edit.inference.packed.forward import PackedRow, TextSpan, prefill_prefixes
from lightning_edit.models.view import ModelView


@dataclass(frozen=True)
class AnswerFactors:
    """Per-row loss and its gradient factors: layer inputs and output gradients.

    Args:
        loss: Mean negative log-likelihood of each row, in nats.
        factors: By module name, inputs and output gradients at the positions that predict the
            answer tokens.
    """

    loss: Float[Tensor, " b"]
    factors: dict[str, tuple[Float[Tensor, "a d_in"], Float[Tensor, "a d_out"]]]


def answer_factors(
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    parameters: Mapping[str, Tensor] | None = None,
) -> AnswerFactors:
    r"""Return each row's loss and, per layer, its gradient factors at the answer tokens.

    The gradient is that of each row's own mean loss, as in a batch of one. No gradient passes
    through a prompt: nothing at an answer token acts on a token before it. So prompts run once,
    without a graph, into a KV cache, and equal ones once only; then the tokens that predict the
    answers run alone, packed in one row without padding. Where the model's attention cannot be
    replaced, where edits decide once a prompt, and with ``parameters``, rows are padded; the last
    block's MLP and the head run only at the answers there. Results equal those of
    :func:`~lightning_edit.inference.token_factors.token_factors` up to rounding.

    Args:
        view: A decoder-only language model; its weights may be frozen.
        rows: Token ids of prompts and answers, none of them empty.
        modules: Dotted names of linear layers.
        parameters: Values that replace the model's parameters, by name.
    """
    found = _factors(view, rows, modules, parameters)
    if len(rows) > 1 and not bool(found.loss.isfinite().all()):
        _read_broken_rows_alone(found, view, rows, modules, parameters)
    return found


def _factors(
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    parameters: Mapping[str, Tensor] | None,
) -> AnswerFactors:
    with torch.inference_mode(False), torch.enable_grad():
        batch = AnswerRows.pad(rows, view.embeddings.get_parameter("weight").device)
        if not parameters and calls_of(view.model) is None:
            try:
                return _after_prompts(view, rows, batch, modules)
            except NotPackableError:
                # Found before anything is kept: attention with a bias, a cap or a short window.
                pass
        return _whole_rows(view, batch, modules, parameters)


def _read_broken_rows_alone(
    found: AnswerFactors,
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    parameters: Mapping[str, Tensor] | None,
) -> None:
    """Replace what is not finite by what its row gives alone; another row may have broken it.

    A masked token has weight zero in attention and in its gradient, and zero times NaN is NaN.
    """
    end = 0
    for number, row in enumerate(rows):
        start, end = end, end + len(row[1])
        parts = [part[start:end] for pair in found.factors.values() for part in pair]
        if all(bool(part.isfinite().all()) for part in (found.loss[number], *parts)):
            continue
        alone = _factors(view, [row], modules, parameters)
        found.loss[number] = alone.loss[0]
        for name, pair in found.factors.items():
            for whole, own in zip(pair, alone.factors[name], strict=True):
                whole[start:end] = own


def _after_prompts(
    view: ModelView, rows: Sequence[AnswerRow], batch: AnswerRows, modules: Sequence[str]
) -> AnswerFactors:
    """Run prompts into a KV cache, then what predicts the answers, in one row without padding."""
    with torch.no_grad():
        before = [tuple(prompt[:-1]) for prompt, _ in rows]
        pool, earlier = prefill_prefixes(view, before, view.num_blocks - 1)
    spans = [
        TextSpan((prompt[-1], *answer[:-1]), places)
        for (prompt, answer), places in zip(rows, earlier, strict=True)
    ]
    row = PackedRow.of(view, spans, pool)
    ends = torch.tensor([len(one) for one in before], device=batch.rows.device)
    places = row.packing.starts[batch.rows] + batch.positions - ends[batch.rows]
    with record_factors(view.model, modules) as (captured, zeros):
        logits = row.logits(view, places)
    losses, gradients = _gradients(logits, batch, [zeros[name] for name in modules])
    factors = {
        name: (captured[name].detach()[0, places], gradient[0, places])
        for name, gradient in zip(modules, gradients, strict=True)
    }
    return AnswerFactors(losses, factors)


def _whole_rows(
    view: ModelView,
    batch: AnswerRows,
    modules: Sequence[str],
    parameters: Mapping[str, Tensor] | None,
) -> AnswerFactors:
    """Run prompts with their answers in padded rows."""
    model = view.model
    with _run_last_mlp_at_answers(view, batch), record_factors(model, modules) as (captured, zeros):
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        places = (batch.rows, batch.positions)
        with telling(model, batch.prompt_ends):
            logits = wide(logits_at(model, inputs, places, parameters))
    losses, gradients = _gradients(logits, batch, [zeros[name] for name in modules])
    factors = {
        name: (_select_answers(captured[name].detach(), batch), _select_answers(gradient, batch))
        for name, gradient in zip(modules, gradients, strict=True)
    }
    return AnswerFactors(losses, factors)


def _gradients(
    logits: Float[Tensor, "a v"], batch: AnswerRows, zeros: Sequence[Tensor]
) -> tuple[Float[Tensor, " b"], tuple[Tensor, ...]]:
    """Return each row's mean loss, and the gradients of their sum at layers' outputs."""
    nll = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    losses = batch.per_row(nll)
    return losses.detach(), torch.autograd.grad(losses.sum(), zeros)


@contextmanager
def _run_last_mlp_at_answers(view: ModelView, batch: AnswerRows) -> Iterator[None]:
    """Run the last block's MLP at the answer positions only, each as a row of one position."""
    block = view.blocks[-1]
    if block.mlp == block.mlp_down:
        # No module holds the whole MLP (OPT), so it runs at all positions.
        yield
        return
    mlp = view.model.get_submodule(block.mlp)

    def pick(value: Any) -> Any:
        # BLOOM and MPT give their MLP the hidden state to add as well.
        if not isinstance(value, Tensor) or value.shape[:2] != batch.ids.shape:
            return value
        return value[batch.rows, batch.positions].unsqueeze(1)

    def gather(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(pick, args)), {name: pick(value) for name, value in kwargs.items()}

    def scatter(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        found = first_tensor(output)
        zeros = found.new_zeros(*batch.ids.shape, found.shape[-1])
        whole = zeros.index_put((batch.rows, batch.positions), found[:, 0])
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    with hooked(mlp, gather, scatter, with_kwargs=True):
        yield


def _select_answers(values: Tensor, batch: AnswerRows) -> Float[Tensor, "a w"]:
    """Select values at the answer positions; inside the last MLP there are no others."""
    if values.shape[:2] == batch.ids.shape:
        return values[batch.rows, batch.positions]
    return values.squeeze(1)
