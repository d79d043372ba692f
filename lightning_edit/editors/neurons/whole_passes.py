"""Integrated gradients of an answer token's probability, by whole passes of the model.

Works at any linear layer of a stack that predicts answers: a decoder-only model, or the decoder of
two stacks. Axis names: ``a`` -- predictions; ``f`` -- neurons of a layer; ``m`` -- path points.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.functional.attribution import probability_gradient
from lightning_edit.inference.answer_pass import logits_at
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.hooks import capture, replace_input, replace_output
from lightning_edit.inference.model_call import telling

Prediction = AnswerRow
"""Token ids of a prompt and of an answer, of which the last token's probability is read."""


def prediction_rows(model: Any, predictions: Sequence[Prediction]) -> AnswerRows:
    """Pad predictions into one batch, each row with one target.

    Args:
        model: The language model, of one stack or two.
        predictions: The predictions.
    """
    if not model.config.is_encoder_decoder:
        device = model.get_input_embeddings().weight.device
        joined = [((*prompt, *answer[:-1]), answer[-1:]) for prompt, answer in predictions]
        return AnswerRows.pad(joined, device)
    rows = AnswerRows.of(model, predictions)
    counts = torch.tensor([len(answer) for _, answer in predictions], device=rows.ids.device)
    last = counts.cumsum(0) - 1
    return replace(
        rows, rows=rows.rows[last], positions=rows.positions[last], targets=rows.targets[last]
    )


def prediction_logits(model: Any, rows: AnswerRows) -> Float[Tensor, "a v"]:
    """Return the logits of predictions, from one pass.

    Args:
        model: The language model.
        rows: The predictions, of :func:`prediction_rows`.
    """
    with telling(model, rows.prompt_ends):
        return logits_at(model, rows.inputs, (rows.rows, rows.positions))


def path_batches(
    predictions: int, points: Float[Tensor, " m"], rows_per_pass: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield batches of (prediction, path point) pairs.

    Args:
        predictions: Number of predictions.
        points: Path points, fractions of the activations.
        rows_per_pass: Most pairs at once.
    """
    pairs = [(number, float(point)) for number in range(predictions) for point in points]
    for start in range(0, len(pairs), rows_per_pass):
        part = pairs[start : start + rows_per_pass]
        yield [number for number, _ in part], [point for _, point in part]


def integrated_gradients(
    model: Any,
    predictions: Sequence[Prediction],
    module: str,
    side: Literal["input", "output"],
    points: Float[Tensor, " m"],
    rows_per_pass: int,
) -> Float[Tensor, "a f"]:
    """Return activation times mean gradient, at the position that predicts each token.

    The activations of the whole layer are scaled together, at that position only.

    Args:
        model: The language model.
        predictions: The predictions.
        module: Dotted name of the layer, in the stack that predicts answers.
        side: Whether the neurons are its inputs or its outputs.
        points: Path points, fractions of the activations.
        rows_per_pass: Most rows per pass; bounds memory.
    """
    every = prediction_rows(model, predictions)
    with torch.no_grad(), capture(model, {module: side}) as seen:
        prediction_logits(model, every)
    activation = seen[module][every.rows, every.positions].detach()
    total = torch.zeros_like(activation, dtype=torch.float64)
    layer = model.get_submodule(module)
    for numbers, fractions in path_batches(len(predictions), points, rows_per_pass):
        rows = prediction_rows(model, [predictions[number] for number in numbers])
        scale = activation.new_tensor(fractions)[:, None]
        scaled = (activation[numbers] * scale).requires_grad_()

        def put(hidden: Tensor, rows: AnswerRows = rows, new: Tensor = scaled) -> Tensor:
            return hidden.index_put((rows.rows, rows.positions), new)

        replaced: AbstractContextManager[None] = (
            replace_input(layer, put)
            if side == "input"
            else replace_output(layer, put, within=model)
        )
        with replaced:
            logits = prediction_logits(model, rows)
        gradient = probability_gradient(logits, rows.targets, scaled)
        total.index_add_(0, torch.tensor(numbers, device=total.device), gradient)
    return activation.double() * total / len(points)
