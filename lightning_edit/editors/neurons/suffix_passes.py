"""Integrated gradients of an answer token's probability, by the blocks above each layer alone.

Works on one stack. :mod:`~lightning_edit.editors.neurons.whole_passes` does the same by whole
passes. Axis names: ``l`` -- layers; ``a`` -- predictions; ``d`` -- hidden width; ``f`` --
neurons of a layer; ``m`` -- path points.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.neurons.whole_passes import Prediction, path_batches
from lightning_edit.functional.attribution import probability_gradient
from lightning_edit.inference.suffix.build import build_suffix_forwards
from lightning_edit.inference.suffix.forward import SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight


def integrated_gradients_by_suffixes(
    view: ModelView,
    predictions: Sequence[Prediction],
    layers: Sequence[int],
    points: Float[Tensor, " m"],
    rows_per_pass: int,
) -> Float[Tensor, "l a f"]:
    """Integrate gradients over the inputs h of each layer's down-projection W.

    Scaling h by α adds (α - 1) W h to the MLP's output at one token, so only the blocks above run
    again, on that token; the gradient with respect to h is Wᵀ times that of the added term.

    Args:
        view: The language model's structure.
        predictions: The predictions.
        layers: Numbers of the blocks.
        points: Path points, fractions of the activations.
        rows_per_pass: Most rows per pass; bounds memory.

    Returns:
        Activation times mean gradient, at the position that predicts each token.
    """
    found = _by_suffixes(view, predictions, layers, points, rows_per_pass)
    finite = found.isfinite().all(2).all(0).tolist()
    # A masked token has weight zero in attention, and zero times NaN is NaN: one prediction whose
    # states are not finite would break those of the others.
    for number, sound in enumerate(finite if len(finite) > 1 else ()):
        if not sound:
            alone = _by_suffixes(view, [predictions[number]], layers, points, rows_per_pass)
            found[:, number] = alone[:, 0]
    return found


def _by_suffixes(
    view: ModelView,
    predictions: Sequence[Prediction],
    layers: Sequence[int],
    points: Float[Tensor, " m"],
    rows_per_pass: int,
) -> Float[Tensor, "l a f"]:
    read = [(*prompt, *answer[:-1]) for prompt, answer in predictions]
    texts = [TokenizedText(number, ids, len(ids) - 1) for number, ids in enumerate(read)]
    tokens = torch.tensor([answer[-1] for _, answer in predictions])
    suffixes = build_suffix_forwards(view, texts, layers, "mlp")
    found = []
    for layer, suffix in zip(layers, suffixes, strict=True):
        dtype = torch.promote_types(suffix.keys.dtype, torch.float32)
        down = weight(view.model, view.parameter(layer)).read(dtype)
        found.append(_integrate(suffix, down, tokens, points, rows_per_pass))
    return torch.stack(found)


def _integrate(
    suffix: SuffixForward,
    down: Float[Tensor, "d f"],
    tokens: Int[Tensor, " a"],
    points: Float[Tensor, " m"],
    rows_per_pass: int,
) -> Float[Tensor, "a f"]:
    h = suffix.keys.to(down)
    tokens = tokens.to(h.device)
    output = h @ down.mT
    total = torch.zeros_like(output, dtype=torch.float64)
    for numbers, fractions in path_batches(len(tokens), points, rows_per_pass):
        rows = torch.tensor(numbers, device=h.device)
        added = (output[rows] * (h.new_tensor(fractions)[:, None] - 1)).requires_grad_()
        at = torch.arange(len(rows), device=h.device)
        logits = suffix.select(rows).logits(added, at, torch.zeros_like(at))
        total.index_add_(0, rows, probability_gradient(logits, tokens[rows], added))
    return h.double() * (total @ down.double()) / len(points)
