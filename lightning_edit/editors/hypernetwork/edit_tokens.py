"""Keys and output gradients of a batch of edits, read in mini-batches (MALMEN's cache pass).

Axis names: ``n`` -- tokens of all edits; ``d_in``/``d_out`` -- width of a layer's input and output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_gradients import answer_factors
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.sites import site_of
from lightning_edit.models.view import ModelView, Stack

TokenChoice = Literal["ans", "mask"]
LossOver = Literal["request", "mini_batch"]


@dataclass(frozen=True)
class EditTokens:
    """Keys and gradients of the selected tokens, by layer.

    Args:
        factors: By module name, keys and gradients, mini-batch after mini-batch.
        owners: By module name, number of the request of each token; the modules of a stack have the
            same tokens.
        sizes: By module name, tokens of each mini-batch.
        loss: Mean negative log-likelihood of the answers before the edit, in nats.
    """

    factors: Mapping[str, tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]]
    owners: Mapping[str, Int[Tensor, " n"]]
    sizes: Mapping[str, Int[Tensor, " m"]]
    loss: float

    def mini_batches(self, module: str) -> list[tuple[Tensor, Tensor]]:
        """Return a layer's keys and gradients of each mini-batch."""
        ends = list(accumulate(self.sizes[module].tolist()))[:-1]
        keys, gradients = self.factors[module]
        return list(zip(keys.tensor_split(ends), gradients.tensor_split(ends), strict=True))

    def groups(self, module: str, requests: int | None) -> list[Int[Tensor, " n"]]:
        """Return the indices of each request's tokens; with ``None``, one group of all tokens.

        Args:
            module: The layer.
            requests: Number of requests that are written each alone.
        """
        owners = self.owners[module]
        if requests is None:
            return [torch.arange(len(owners), device=owners.device)]
        return [(owners == number).nonzero().squeeze(1) for number in range(requests)]

    def of_all_processes(self) -> "EditTokens":
        """Return the tokens of all processes, rank after rank; without DDP, the tokens as is."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        # Once a stack: its modules have one tensor of owners, and one of sizes.
        found = {id(own): _owners_of_all_processes(own) for own in self.owners.values()}
        owners = {name: found[id(own)] for name, own in self.owners.items()}
        sizes = {id(own): torch.cat(gather_all_tensors(own)) for own in self.sizes.values()}
        factors = {
            name: (
                torch.cat(gather_all_tensors(keys.contiguous())),
                torch.cat(gather_all_tensors(gradients.contiguous())),
            )
            for name, (keys, gradients) in self.factors.items()
        }
        return EditTokens(
            factors, owners, {name: sizes[id(own)] for name, own in self.sizes.items()}, self.loss
        )


def _owners_of_all_processes(owners: Int[Tensor, " n"]) -> Int[Tensor, " n2"]:
    first = gather_all_tensors(owners.max()[None] + 1)
    starts = list(accumulate([int(count) for count in first], initial=0))
    parts = zip(gather_all_tensors(owners), starts[:-1], strict=True)
    return torch.cat([part + start for part, start in parts])


def read_tokens(
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    mini_batch: int,
    token: TokenChoice = "ans",
    loss_over: LossOver = "request",
    parameters: Mapping[str, Tensor] | None = None,
    ranks: OneProcess = ALONE,
) -> EditTokens:
    """Read keys and output gradients of edits, one forward and backward pass per mini-batch.

    Args:
        view: The language model.
        rows: Token ids of the edits' prompts and answers.
        modules: Dotted names of the edited layers.
        mini_batch: Rows per pass, sorted by length, longest first; the last may have fewer.
        token: ``ans``: the positions that predict the answer; ``mask``: every position but padding.
            In an encoder always every position but padding.
        loss_over: Whose mean loss the gradients are of: each ``request``'s own, whatever else is in
            the pass; or the answer tokens of a ``mini_batch``, as in the authors' code.
        parameters: Values that replace the model's parameters, by name.
        ranks: The processes that read together; each takes whole passes.
    """
    stacks = {name: site_of(view, name).stack for name in modules}
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    owners: dict[Stack, list[Tensor]] = {stack: [] for stack in stacks.values()}
    losses: list[float] = []

    def read(numbers: Sequence[int]) -> _Read:
        part = [rows[number] for number in numbers]
        if token == "ans" and not view.is_encoder_decoder:
            return _at_answers(view, part, modules, loss_over, parameters)
        return _at_all(view, part, stacks, token, loss_over, parameters)

    passes = list(length_sorted([len(p) + len(a) for p, a in rows], mini_batch))
    for numbers, (loss, found, places) in zip(passes, ranks.deal(passes, read), strict=True):
        losses += loss
        for name in modules:
            factors[name].append(found[name])
        for stack, listed in owners.items():
            listed.append(torch.tensor(numbers, device=places[stack].device)[places[stack]])
    every = {stack: torch.cat(listed) for stack, listed in owners.items()}
    sizes = {
        stack: torch.tensor([len(one) for one in listed], device=every[stack].device)
        for stack, listed in owners.items()
    }
    return EditTokens(
        {
            name: (torch.cat([k for k, _ in parts]), torch.cat([g for _, g in parts]))
            for name, parts in factors.items()
        },
        {name: every[stack] for name, stack in stacks.items()},
        {name: sizes[stack] for name, stack in stacks.items()},
        sum(losses) / len(losses),
    )


_Read = tuple[list[float], Mapping[str, tuple[Tensor, Tensor]], Mapping[Stack, Tensor]]
"""Loss of each row; keys and gradients by module; the row of each token, by stack."""


def _at_answers(
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    loss_over: LossOver,
    parameters: Mapping[str, Tensor] | None,
) -> _Read:
    """Read one stack at the positions that predict the answers."""
    read = answer_factors(view, rows, modules, parameters)
    factors, device = read.factors, read.loss.device
    counts = torch.tensor([len(answer) for _, answer in rows], device=device)
    if loss_over == "mini_batch":
        # The gradient of the row's own mean, weighed by its share of the answer tokens.
        share = (counts.double() / counts.sum()).repeat_interleave(counts)[:, None]
        factors = {name: (k, (g * share).to(g)) for name, (k, g) in factors.items()}
    places = torch.arange(len(rows), device=device).repeat_interleave(counts)
    return read.loss.tolist(), factors, {"decoder": places}


def _at_all(
    view: ModelView,
    rows: Sequence[AnswerRow],
    stacks: Mapping[str, Stack],
    token: TokenChoice,
    loss_over: LossOver,
    parameters: Mapping[str, Tensor] | None,
) -> _Read:
    """Read every position, and keep those of each stack that count."""
    batch = AnswerRows.of(view.model, rows)
    each = loss_over == "request"
    loss, every = token_factors(view.model, rows, list(stacks), batch.ids.device, each, parameters)
    masks: dict[Stack, Tensor] = {"decoder": batch.mask}
    if token == "ans":
        answers = torch.zeros_like(batch.mask)
        answers[batch.rows, batch.positions] = True
        masks["decoder"] = answers
    if batch.encoder is not None:
        masks["encoder"] = batch.encoder[1]
    kept = {name: masks[stack] for name, stack in stacks.items()}
    factors = {name: (k[kept[name]], g[kept[name]]) for name, (k, g) in every.items()}
    places = {stack: mask.nonzero()[:, 0] for stack, mask in masks.items()}
    return [loss] * len(rows), factors, places
