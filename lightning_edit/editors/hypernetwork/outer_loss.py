"""Outer loss of a meta-learning step and its gradient by edited weights, in mini-batches.

Axis names: ``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.editors.hypernetwork.scoring import OwnedRow
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.functional.tokens import length_sorted
from lightning_edit.inference.answer_pass import wide
from lightning_edit.inference.answer_rows import AnswerRows

Reduction = Literal["mean", "sum"]
Processes = Literal["own", "summed", "averaged"]
Reader = Callable[[AnswerRows, Tensor], Float[Tensor, "a v"]]
"""Returns logits at the answers of rows, given the index of each row's edit."""


def processes() -> int:
    """Return the number of processes that train together."""
    running = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if running else 1


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if processes() > 1:
        tensor = tensor.contiguous().clone()
        dist.all_reduce(tensor)
    return tensor


def anywhere(here: bool, device: torch.device) -> bool:
    """Return whether something is so in any process, for steps that all of them skip together.

    Args:
        here: Whether it is in this process.
        device: Device of the training.
    """
    return bool(summed(torch.tensor(int(here), device=device)))


@dataclass(frozen=True)
class OuterLoss:
    """Loss of an edited model: NLL of new answers on rephrases, KL drift on locality prompts.

    Args:
        c_edit: Weight of the new answers' negative log-likelihood.
        c_loc: Weight of the KL divergence of the edited from the reference model.
        mini_batch: Rows per forward and backward pass; bounds memory.
        reduction: ``mean`` over the answer tokens of all rows (of all processes); ``sum`` of the
            means of the mini-batches, as in the authors' code, which grows with the batch.
        processes: What becomes of the gradients of several processes, so that they have the right
            share: each is of its ``own`` loss, and DDP averages them; or they are parts of one loss
            over all rows, and are ``summed`` by the caller, or ``averaged`` by DDP.
    """

    c_edit: float
    c_loc: float
    mini_batch: int
    reduction: Reduction = "mean"
    processes: Processes = "own"

    def gradients(
        self,
        outer: Sequence[OwnedRow],
        locality: Sequence[OwnedRow],
        read: Reader,
        reference: Reader,
        leaves: Mapping[str, Tensor],
        pad: Callable[[Sequence[OwnedRow]], AnswerRows],
        device: torch.device,
        before_locality_backward: Callable[[], None] = lambda: None,
        after_locality_backward: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss with its terms, and its gradient by the leaves.

        Each mini-batch is run and differentiated before the next one, so that memory does not grow
        with the number of edits.

        Args:
            outer: Rows that the edited model must answer.
            locality: Rows whose answers must not change.
            read: Logits of the edited model, with a graph to ``leaves``.
            reference: Logits of the model whose answers are to be kept.
            leaves: Tensors to differentiate by, by name.
            pad: Pads rows into a batch of the language model.
            device: Device of the rows.
            before_locality_backward: Called between the forward and the backward pass of locality.
            after_locality_backward: Called after it.

        Returns:
            ``loss``, ``edit_nll`` and ``locality_kl`` of this process's rows; and the gradients, in
            single precision at least.
        """
        names = list(leaves)
        total = {name: torch.zeros_like(leaf, dtype=_wide(leaf)) for name, leaf in leaves.items()}
        terms = {"edit_nll": torch.zeros((), device=device)}
        terms["locality_kl"] = torch.zeros((), device=device)
        for kind, rows, weight in (
            ("edit_nll", outer, self.c_edit),
            ("locality_kl", locality, self.c_loc),
        ):
            all_tokens, times = self._tokens(rows, device), 1
            if self.processes == "averaged":
                times = processes()
            here = max(1, sum(max(1, len(answer)) for _, (_, answer) in rows))
            for batch, owners in self._mini_batches(rows, pad):
                count = len(batch.rows)
                if kind == "edit_nll":
                    logits = wide(read(batch, owners))
                    mean = nn.functional.cross_entropy(logits, batch.targets)
                else:
                    with torch.no_grad():
                        old = reference(batch, owners)
                    mean = drift_kl(old, read(batch, owners))
                by_sum = self.reduction == "sum"
                scaled = times * (mean if by_sum else mean * (count / all_tokens))
                if kind == "locality_kl":
                    before_locality_backward()
                found = torch.autograd.grad(weight * scaled, [leaves[name] for name in names])
                if kind == "locality_kl":
                    after_locality_backward()
                for name, gradient in zip(names, found, strict=True):
                    total[name] += gradient
                terms[kind] += mean.detach() * (1.0 if by_sum else count / here)
        loss = self.c_edit * terms["edit_nll"] + self.c_loc * terms["locality_kl"]
        return {"loss": loss, **terms}, total

    def _tokens(self, rows: Sequence[OwnedRow], device: torch.device) -> int:
        """Count the answer tokens of rows, over all processes whose loss this is."""
        here = sum(max(1, len(answer)) for _, (_, answer) in rows)
        if self.processes == "own":
            return here
        return int(summed(torch.tensor(here, device=device)))

    def _mini_batches(
        self, rows: Sequence[OwnedRow], pad: Callable[[Sequence[OwnedRow]], AnswerRows]
    ) -> Iterator[tuple[AnswerRows, Tensor]]:
        lengths = [len(prompt) + len(answer) for _, (prompt, answer) in rows]
        for numbers in length_sorted(lengths, self.mini_batch):
            part = [rows[number] for number in numbers]
            batch = pad(part)
            yield batch, torch.tensor([number for number, _ in part], device=batch.ids.device)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
