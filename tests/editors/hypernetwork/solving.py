"""What the tests of MALMEN and RLEdit share: a reference of their gradients by plain autograd."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.editors.hypernetwork.edit_tokens import EditTokens
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.solving import SolvingHypernetwork
from lightning_edit.functional.value_network import ValueNetwork
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.types import EditBatch
from tests.models.tiny import build_tiny
from tests.toy import toy_model, toy_requests, toy_tokenizer


def language_model(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Return a random model: Conv1D (gpt2), Linear and gated (llama), two stacks (t5, bart)."""
    if kind == "gpt2":
        return toy_model(dtype), toy_tokenizer()
    tokenizer = toy_tokenizer()
    model = build_tiny(kind, vocab_size=len(tokenizer)).to(dtype)
    return model.eval().requires_grad_(False), tokenizer


def shaken(editor: SolvingHypernetwork, seed: int = 0) -> SolvingHypernetwork:
    """Set all parameters of an editor's networks to random numbers, in float64."""
    editor.double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in editor.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            if "down" not in name:
                parameter.add_(0.1 * noise if "step_sizes" not in name else 0.02 * noise.abs())
    return editor


def sample(editor: SolvingHypernetwork, count: int, start: int = 0) -> MetaBatch:
    """Return a training batch of the toy facts."""
    requests = toy_requests(start + count)
    return editor.source.sample(requests[start:], Random(0), toy_requests(30))


def solved_by_autograd(
    editor: SolvingHypernetwork, tokens: EditTokens, requests: int | None
) -> list[dict[str, Tensor]]:
    """Return the updates of each request, or of all together, with the graph of everything."""
    found = []
    for place in range(requests or 1):
        updates = {}
        for handle in editor.weights:
            group, layer = editor._slots[handle.name]
            network = editor.networks[group]
            assert isinstance(network, ValueNetwork)
            module = handle.name.removesuffix(".weight")
            numbers = tokens.groups(module, requests)[place]
            keys, gradients = (part[numbers] for part in tokens.factors[module])
            shifts = network(keys, gradients, layer)
            ridge = network.log_ridges[layer].exp() * torch.eye(keys.shape[1]).double()
            updates[handle.name] = torch.linalg.solve(keys.mT @ keys + ridge, keys.mT @ shifts).mT
        found.append(updates)
    return found


def parameters_with(
    editor: SolvingHypernetwork, *updates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return edited weights with the graph of their updates."""
    values = {}
    for handle in editor.weights:
        change = torch.stack([update[handle.name] for update in updates]).sum(0)
        oriented = change.mT if handle.transposed else change
        values[handle.name] = handle.raw().detach() + oriented
    return values


def logits(editor: SolvingHypernetwork, rows: Sequence[AnswerRow], values: Any) -> Any:
    """Return logits and targets of rows."""
    batch = AnswerRows.of(editor.language_model, list(rows))
    return answer_logits(editor.language_model, batch, values), batch.targets


def nll_sum(editor: SolvingHypernetwork, rows: Sequence[AnswerRow], values: Any) -> Tensor:
    found, targets = logits(editor, rows, values)
    return nn.functional.cross_entropy(found, targets, reduction="sum")


def kl_sum(
    editor: SolvingHypernetwork, rows: Sequence[AnswerRow], values: Any, reference: Any
) -> Tensor:
    new = logits(editor, rows, values)[0].log_softmax(-1)
    with torch.no_grad():
        old = logits(editor, rows, reference)[0].log_softmax(-1)
    return (old.exp() * (old - new)).sum()


def answer_tokens(rows: Sequence[tuple[int, AnswerRow]]) -> int:
    return sum(len(answer) for _, (_, answer) in rows)


def gradients_of(editor: SolvingHypernetwork, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(editor.parameters())))


def halves(batch: EditBatch, size: int) -> list[EditBatch]:
    return [
        EditBatch(batch.requests[n : n + size], batch.encoded[n : n + size])
        for n in range(0, len(batch), size)
    ]
