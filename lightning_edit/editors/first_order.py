"""First-order effects of updates on answers: which facts an update moves, before it is written.

Axis names: ``e`` -- updates; ``n`` -- answers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.shares import linear_module, shares_of
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.answer_rows import AnswerRow
from lightning_edit.inference.output_gradients import output_gradients

#: Answers whose gradients are held at once.
_ANSWERS = 256


def first_order_effects(
    model: Any, deltas: Sequence[Delta], rows: Sequence[AnswerRow], rows_per_pass: int = 64
) -> Float[Tensor, "e n"]:
    r"""Return what each update changes of each answer, to first order, on the model as it is.

    It is :math:`\sum_t g_t^\top \Delta k_t` over all edited layers and all tokens t of prompt and
    answer, with g the gradient of the answer's mean log-probability a token by the layer's output.
    An effect below 0 foretells that the answer becomes less likely.

    Args:
        model: The language model, without the updates.
        deltas: Updates of weights or biases of linear layers.
        rows: Token ids of prompts and answers, none of them empty.
        rows_per_pass: Rows in a pass; bounds memory.

    Returns:
        Effects in nats a token of the answer, float64 on the CPU.

    Raises:
        ArchitectureError: If an update changes something else than a linear layer.
    """
    modules = {name: linear_module(model, name) for one in deltas for name in one.weights}
    if odd := [name for name, module in modules.items() if module is None]:
        raise ArchitectureError(
            f"a first-order effect is that of a linear layer's update, but {odd[0]} of "
            f"{type(model).__name__} acts elsewhere (an embedding, a norm, a tied weight); take "
            "an editor of linear layers"
        )
    found = torch.zeros(len(deltas), len(rows), dtype=torch.float64)
    wanted = list(dict.fromkeys(module for module in modules.values() if module is not None))
    for start in range(0, len(rows), _ANSWERS):
        part = rows[start : start + _ANSWERS]
        reads = output_gradients(model, part, wanted, rows_per_pass)
        for name, module in modules.items():
            layers = [read.layers[str(module)] for read in reads]
            sizes = [len(layer.inputs) for layer in layers]
            inputs = torch.cat([layer.inputs for layer in layers])
            gradients = torch.cat([layer.log_prob for layer in layers])
            for number, delta in enumerate(deltas):
                if name in delta.weights:
                    along = _along(delta, name, inputs, gradients)
                    sums = torch.stack([each.sum() for each in torch.split(along, sizes)])
                    found[number, start : start + len(part)] += sums
    return found / torch.tensor([len(answer) for _, answer in rows], dtype=torch.float64)


def _along(delta: Delta, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return the effect of an update at each token, on the CPU."""
    found = inputs.new_zeros(len(inputs)).cpu()
    for share in shares_of(delta, name):
        factor = share.left if share.left is not None else share.dense
        assert factor is not None
        found += share.along(inputs.to(factor.device), gradients.to(factor.device)).cpu()
    return found
