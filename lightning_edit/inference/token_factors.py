"""Gradient factors of answers: inputs and output gradients of linear layers at every token.

Axis names: ``b`` -- rows (a prompt with its answer); ``t`` -- positions; ``d_in``/``d_out`` --
width of a layer's input and output.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.inference.answer_pass import wide
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import one_pass_logits
from lightning_edit.inference.hooks import record_factors


def token_factors(
    model: nn.Module,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    device: torch.device | str = "cpu",
    each: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
    rows_per_pass: int | None = None,
) -> tuple[float, dict[str, tuple[Float[Tensor, "b t d_in"], Float[Tensor, "b t d_out"]]]]:
    r"""Return the answers' loss and, per layer, its gradient factors at every token.

    The gradient of the mean negative log-likelihood with respect to a layer's weight is
    :math:`\sum_i \delta_i u_i^\top` with :math:`u_i` the layer's input and :math:`\delta_i` the
    gradient at its output. Works inside ``torch.no_grad`` and ``torch.inference_mode`` and with
    frozen weights: a zero tensor that requires a gradient is added to every output, so no weight
    has to.

    Args:
        model: A Hugging Face language model.
        rows: Token ids of prompts and answers, none of them empty.
        modules: Dotted names of linear layers, with two stacks of either.
        device: Device of the model's inputs.
        each: Take the gradient of each row's own mean loss, as in a batch of one, instead of the
            mean over the answer tokens of all rows.
        parameters: Values that replace the model's parameters, by name.
        rows_per_pass: Most rows of a pass, to bound memory; ``None``: all.

    Returns:
        The mean loss in nats, and by module name inputs and output gradients of every position
        (padding included), detached.
    """
    answers = sum(len(answer) for _, answer in rows)
    size = rows_per_pass or len(rows)
    found = [
        _factors(model, rows[first : first + size], modules, device, each, parameters, answers)
        for first in range(0, len(rows), size)
    ]
    loss = sum(nll.sum().item() for nll, _ in found) / answers
    if len(found) == 1:
        return found[0][0].mean().item(), found[0][1]
    return loss, {
        name: (
            _joined([part[name][0] for _, part in found]),
            _joined([part[name][1] for _, part in found]),
        )
        for name in modules
    }


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors of rows whose second axis is padded to different widths."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(p, (0, 0, 0, width - p.shape[1])) for p in parts])


def _factors(
    model: nn.Module,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    device: torch.device | str,
    each: bool,
    parameters: Mapping[str, Tensor] | None,
    answers: int,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return the loss of each answer token of a pass, and the factors of its gradient."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        record_factors(model, modules) as (captured, zeros),
    ):
        batch = AnswerRows.of(model, rows, device)
        logits = wide(one_pass_logits(model, batch, parameters or {}))
        nll = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = batch.per_row(nll).sum() if each else nll.mean() * (len(nll) / answers)
        gradients = torch.autograd.grad(loss, [zeros[name] for name in modules])
    return nll.detach(), {
        name: (captured[name].detach(), gradient)
        for name, gradient in zip(modules, gradients, strict=True)
    }
