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

from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_gradients import answer_factors
from lightning_edit.inference.answers import AnswerRow, AnswerRows, token_factors
from lightning_edit.models.view import ModelView

TokenChoice = Literal["ans", "mask"]
LossOver = Literal["request", "mini_batch"]


@dataclass(frozen=True)
class EditTokens:
    """Keys and gradients of the selected tokens, by layer.

    Args:
        factors: By module name, keys and gradients, mini-batch after mini-batch.
        owners: Number of the request of each token.
        sizes: Tokens of each mini-batch.
        loss: Mean negative log-likelihood of the answers before the edit, in nats.
    """

    factors: Mapping[str, tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]]
    owners: Int[Tensor, " n"]
    sizes: Int[Tensor, " m"]
    loss: float

    def mini_batches(self, module: str) -> list[tuple[Tensor, Tensor]]:
        """Return a layer's keys and gradients of each mini-batch."""
        ends = list(accumulate(self.sizes.tolist()))[:-1]
        keys, gradients = self.factors[module]
        return list(zip(keys.tensor_split(ends), gradients.tensor_split(ends), strict=True))

    def groups(self, requests: int | None) -> list[Int[Tensor, " n"]]:
        """Return the indices of each request's tokens; with ``None``, one group of all tokens.

        Args:
            requests: Number of requests that are written each alone.
        """
        if requests is None:
            return [torch.arange(len(self.owners), device=self.owners.device)]
        return [(self.owners == number).nonzero().squeeze(1) for number in range(requests)]

    def of_all_processes(self) -> "EditTokens":
        """Return the tokens of all processes, rank after rank; without DDP, the tokens as is."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        first = gather_all_tensors(self.owners.max()[None] + 1)
        starts = list(accumulate([int(count) for count in first], initial=0))
        owners = [
            part + start
            for part, start in zip(gather_all_tensors(self.owners), starts[:-1], strict=True)
        ]
        factors = {
            name: (
                torch.cat(gather_all_tensors(keys.contiguous())),
                torch.cat(gather_all_tensors(gradients.contiguous())),
            )
            for name, (keys, gradients) in self.factors.items()
        }
        sizes = torch.cat(gather_all_tensors(self.sizes))
        return EditTokens(factors, torch.cat(owners), sizes, self.loss)


def read_tokens(
    view: ModelView,
    rows: Sequence[AnswerRow],
    modules: Sequence[str],
    mini_batch: int,
    token: TokenChoice = "ans",
    loss_over: LossOver = "request",
    parameters: Mapping[str, Tensor] | None = None,
) -> EditTokens:
    """Read keys and output gradients of edits, one forward and backward pass per mini-batch.

    Args:
        view: The language model.
        rows: Token ids of the edits' prompts and answers.
        modules: Dotted names of the edited layers.
        mini_batch: Rows per pass, sorted by length, longest first; the last may have fewer.
        token: ``ans``: the positions that predict the answer; ``mask``: every position but padding.
        loss_over: Whose mean loss the gradients are of: each ``request``'s own, whatever else is in
            the pass; or the answer tokens of a ``mini_batch``, as in the authors' code.
        parameters: Values that replace the model's parameters, by name.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    owners, sizes, losses = [], [], []
    device = view.embeddings.get_parameter("weight").device
    for numbers in length_sorted([len(p) + len(a) for p, a in rows], mini_batch):
        part = [rows[number] for number in numbers]
        counts = torch.tensor([len(answer) for _, answer in part], device=device)
        if token == "ans":
            read = answer_factors(view, part, modules, parameters)
            factors = read.factors
            losses += read.loss.tolist()
            if loss_over == "mini_batch":
                # The gradient of the row's own mean, weighed by its share of the answer tokens.
                share = (counts.double() / counts.sum()).repeat_interleave(counts)[:, None]
                factors = {name: (k, (g * share).to(g)) for name, (k, g) in factors.items()}
            owner = torch.tensor(numbers, device=device).repeat_interleave(counts)
        else:
            each = loss_over == "request"
            loss, every = token_factors(view.model, part, modules, device, each, parameters)
            losses += [loss] * len(part)
            mask = AnswerRows.pad(part, device).mask
            factors = {name: (k[mask], g[mask]) for name, (k, g) in every.items()}
            owner = torch.tensor(numbers, device=device)[:, None].expand_as(mask)[mask]
        for name in modules:
            found[name].append(factors[name])
        owners.append(owner)
        sizes.append(len(owner))
    joined = {
        name: (torch.cat([k for k, _ in parts]), torch.cat([g for _, g in parts]))
        for name, parts in found.items()
    }
    mean_loss = sum(losses) / len(losses)
    return EditTokens(joined, torch.cat(owners), torch.tensor(sizes, device=device), mean_loss)
