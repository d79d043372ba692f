"""EasyEdit's WISE on its own rows: left padding, its loss, its steps; what stored runs are made of.

The published code pads on the left without position ids, averages activations over padding and
answers, counts one column too many in the loss, and lets weight decay shrink the whole matrix.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.activations import ACT2FN

from lightning_edit.editors.memory.wise import OPENINGS, WISE, TrainingRows
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.types import EditRequest
from tests.editors.golden import Golden

MARGINS = (5.0, 20.0, 10.0)


@dataclass(frozen=True)
class PublishedRows(TrainingRows):
    columns: Tensor

    def answer_loss(self, nll: Float[Tensor, " a"]) -> Float[Tensor, ""]:
        sums = nll.new_zeros(self.edited + 1).index_add(0, self.rows.rows, nll)
        return (sums[: self.edited] / self.columns).mean()


class PublishedWise:
    """What the published code makes of a model's requests; ``install`` gives it to an editor."""

    def __init__(self, example: Golden, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, copy.deepcopy(tokenizer)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.unrelated = {
            str(one["case_id"]): one["loc_prompt"] for one in example.meta["requests"]
        }
        self.layer = model.transformer.h[4].mlp.c_fc
        self.mask = example.tensors["wise.mask"].view(self.layer.weight.shape)
        self.templates = ["{}", *(f"{text} {{}}" for text in self.continuations())]

    def continuations(self) -> list[str]:
        start = self.tokenizer(list(OPENINGS), padding=True, return_tensors="pt")
        greedy = {"num_beams": 1, "do_sample": False, "pad_token_id": self.tokenizer.eos_token_id}
        found: list[str] = []
        for length in (5, 10):
            ids = self.model.generate(**start, max_new_tokens=length, **greedy)
            found += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found

    def rows(self, request: EditRequest, seed: int = 0) -> PublishedRows:
        count = len(self.templates)
        whole = [t.format(f"{request.prompt} {request.target}") for t in self.templates]
        whole.append(self.unrelated[request.id])
        prompts = [t.format(request.prompt) for t in self.templates]
        width = len(self.tokenizer(prompts, padding=True)["input_ids"][0])
        tokens = self.tokenizer(whole, padding=True, return_tensors="pt")
        ids, labels = tokens["input_ids"], tokens["input_ids"].clone()
        labels[:count, :width] = labels[ids == self.tokenizer.pad_token_id] = -100
        read = [
            (row, int(place)) for row in range(count) for place in labels[row].gt(-100).nonzero()
        ]
        row, place = torch.tensor(read).unbind(1)
        answers = AnswerRows(
            ids,
            tokens["attention_mask"].bool(),
            torch.cat([row, torch.tensor([count])]),
            torch.cat([place - 1, torch.tensor([0])]),
            torch.cat([labels[row, place], torch.tensor([-100])]),
        )
        ignored = (labels[:count] == -100).sum(1)
        return PublishedRows(
            answers, count, torch.ones_like(ids).bool(), ids.shape[1] + 1 - ignored
        )

    def install(self, editor: WISE) -> None:
        """Make an editor train on these rows with these steps, in place of its own."""
        editor.training_rows = self.rows  # type: ignore[method-assign]
        editor.cells = lambda shard: torch.arange(self.mask.numel())  # type: ignore[method-assign]
        mask = self.mask.T

        def step(
            update: Tensor,
            gradient: Tensor,
            original: Tensor,
            cells: Tensor,
            limits: tuple[float, float | None],
        ) -> None:
            rate = limits[0]
            side = update + original
            side = side - rate * (gradient * mask + editor.weight_decay * side)
            update.copy_((side - original).clamp(-1.0, 1.0))

        editor._step = step  # type: ignore[method-assign]

    def train(self, requests: list[EditRequest], steps: int) -> Tensor:
        """Train as the published code does, operation by operation; returns the side matrix."""
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
        side = weight.clone().requires_grad_()
        seen: list[Tensor] = []

        def forward(hidden: Tensor) -> Tensor:
            flat, shape = hidden.view(-1, hidden.shape[-1]), (*hidden.shape[:-1], -1)
            new, own = (torch.addmm(bias, flat, one).view(shape) for one in (side, weight))
            seen[:] = [own, new]
            return new

        self.layer.forward = forward
        self.lowest = float("inf")
        self.after: list[Tensor] = []
        for request in requests:
            inside = self._edit(self.rows(request), side, seen, steps)
            self.after.append(side.detach().clone())
            self.lowest = min(self.lowest, float(inside.mean()))
        del self.layer.forward
        return side.detach()

    def _edit(self, texts: PublishedRows, side: Tensor, seen: list[Tensor], steps: int) -> Tensor:
        alpha, beta, gamma = MARGINS
        weight, rows = self.layer.weight.detach(), texts.rows
        nonlinear = ACT2FN[self.model.config.activation_function]
        optimizer = torch.optim.SGD([side], 1.0, weight_decay=1e-5)
        losses: list[float] = []
        for _ in range(steps):
            if len(losses) > 1 and abs(losses[-1] - losses[-2]) <= 1e-4 and losses[-1] <= 0.02:
                break
            logits = self.model(input_ids=rows.ids, attention_mask=rows.mask.long()).logits
            nll = torch.nn.functional.cross_entropy(
                logits[rows.rows, rows.positions], rows.targets, reduction="none"
            )
            loss = texts.answer_loss(nll)
            # Read after the pass, or gradients would be summed in another order: after forty steps
            # with a rate of 1 that is no longer rounding.
            own, new = (nonlinear(one) for one in seen)
            levels = (new - own).norm(dim=-1).mean(-1)
            inside, outside = levels[:-1], levels[-1:]
            for term in (outside.view(-1, 1) - inside + gamma, outside - alpha, beta - inside):
                loss = loss + (term[term > 0].mean() if bool((term > 0).any()) else 0.0)
            optimizer.zero_grad()
            loss.backward()
            side.grad *= self.mask  # type: ignore[misc]  # set by the backward pass
            optimizer.step()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                side.clamp_(weight - 1.0, weight + 1.0)
        return inside.detach()  # of the weights before the last step
