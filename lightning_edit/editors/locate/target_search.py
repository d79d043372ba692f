"""Target search: the vector that makes a language model say something else.

One vector a request is found by gradient descent; all requests of a pass are optimised together,
and each leaves when it is done. Objective, positions and stopping rule are those of the authors'
code of ROME (arXiv 2202.05262, section 3.1) and MEMIT (arXiv 2210.07229, section 4.3).

Axis names: ``n`` -- requests; ``r`` -- rows (texts); ``d`` -- hidden width; ``f`` -- key width;
``w`` -- width of the site: d, or 2d where one vector is searched for attention and one for the MLP.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.locate.search_objective import EarlyStopping, Objective
from lightning_edit.functional.losses import drift, log_probs, mean_by
from lightning_edit.inference.suffix.build import build_suffix_forward
from lightning_edit.inference.suffix.forward import Site, SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView

Loss = Callable[[SuffixForward, Sequence[TokenizedText], Tensor], Tensor]
"""What a pass minimises besides the decay, one value a request: from the tail that ran, its texts,
and the logits at their answers' tokens and then at their watched places."""


@dataclass(frozen=True)
class Targets:
    """What a search found, one line a request.

    Args:
        delta: The vectors δ.
        initial: h₀, the site's output on the bare prompt.
        keys: Inputs of the site's down-projection at the subject, one line a text with an answer.
        values: Outputs of the same layer.
        losses: Loss when the request was done.
        steps: Optimiser steps taken.
    """

    delta: Float[Tensor, "n w"]
    initial: Float[Tensor, "n w"]
    keys: list[Float[Tensor, "r f"]]
    values: list[Float[Tensor, "r d"]]
    losses: list[float]
    steps: list[int]

    @property
    def wanted(self) -> Float[Tensor, "n w"]:
        """The target vectors h₀ + δ."""
        return self.initial + self.delta

    def only(self, number: int) -> "Targets":
        """Return what was found for one request."""
        one = slice(number, number + 1)
        return Targets(
            self.delta[one],
            self.initial[one],
            self.keys[one],
            self.values[one],
            self.losses[one],
            self.steps[one],
        )


@dataclass(frozen=True)
class _HeadPositions:
    """Where a pass reads the head, for the requests still searching (numbered 0 … n-1)."""

    rows: Int[Tensor, " m"]
    positions: Int[Tensor, " m"]
    targets: Int[Tensor, " k"]
    answer_rows: Int[Tensor, " k"]
    row_request: Int[Tensor, " r"]
    answer_request: Int[Tensor, " a"]
    watched: Int[Tensor, " w"]

    @classmethod
    def of(cls, texts: Sequence[TokenizedText], device: torch.device) -> "_HeadPositions":
        numbers = {request: i for i, request in enumerate(dict.fromkeys(t.request for t in texts))}
        rows: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        answer_rows: list[int] = []
        answer_request: list[int] = []
        for row, text in enumerate(texts):
            if not text.answer:
                continue
            first = len(text.ids) - len(text.answer) - text.subject
            rows += [row] * len(text.answer)
            positions += range(first, first + len(text.answer))
            targets += text.answer
            answer_rows += [len(answer_request)] * len(text.answer)
            answer_request.append(numbers[text.request])
        watching = [(row, text) for row, text in enumerate(texts) if text.watch is not None]
        rows += [row for row, _ in watching]
        positions += [(text.watch or 0) - text.subject for _, text in watching]

        def tensor(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            tensor(rows),
            tensor(positions),
            tensor(targets),
            tensor(answer_rows),
            tensor([numbers[text.request] for text in texts]),
            tensor(answer_request),
            tensor([numbers[text.request] for _, text in watching]),
        )


def search_targets(
    view: ModelView,
    texts: Sequence[TokenizedText],
    block: int,
    site: Site,
    objective: Objective,
    rows_per_pass: int,
    loss_for: Callable[[Sequence[TokenizedText]], Loss] | None = None,
) -> Targets:
    """Find every request's target vector.

    Args:
        view: The language model's structure; the model does not change.
        texts: The texts of all requests, those of one request together, each request's bare prompt
            first.
        block: Block at which vectors are added.
        site: At the output of its MLP, of the block, or of its attention and its MLP.
        objective: What is minimised, and how.
        rows_per_pass: Most texts in one pass, to bound memory; requests are never split.
        loss_for: Makes the loss of a pass from its texts; ``None``: the objective's likelihood and
            divergence.

    Returns:
        Vectors, and what was seen on the way.
    """
    groups = list(_groups(texts, rows_per_pass))
    found = [_search(view, group, block, site, objective, loss_for) for group in groups]
    order = [request for group in groups for request in dict.fromkeys(t.request for t in group)]
    lines = [part.only(line) for part in found for line in range(len(part.losses))]
    lines = [line for _, line in sorted(zip(order, lines, strict=True), key=lambda pair: pair[0])]
    return Targets(
        delta=torch.cat([line.delta for line in lines]),
        initial=torch.cat([line.initial for line in lines]),
        keys=[keys for line in lines for keys in line.keys],
        values=[values for line in lines for values in line.values],
        losses=[loss for line in lines for loss in line.losses],
        steps=[steps for line in lines for steps in line.steps],
    )


def _groups(texts: Sequence[TokenizedText], rows_per_pass: int) -> Iterator[list[TokenizedText]]:
    """Yield whole requests of like length, in as few passes as they fit into, of like size."""
    by_request: dict[int, list[TokenizedText]] = {}
    for text in texts:
        by_request.setdefault(text.request, []).append(text)

    def tokens_after(listed: list[TokenizedText]) -> int:
        return max(len(text.ids) - text.subject for text in listed)

    share = len(texts) / math.ceil(len(texts) / rows_per_pass)
    group: list[TokenizedText] = []
    for listed in sorted(by_request.values(), key=tokens_after, reverse=True):
        if group and (len(group) >= share or len(group) + len(listed) > rows_per_pass):
            yield group
            group = []
        group = group + listed
    yield group


def _search(
    view: ModelView,
    texts: list[TokenizedText],
    block: int,
    site: Site,
    objective: Objective,
    loss_for: Callable[[Sequence[TokenizedText]], Loss] | None,
) -> Targets:
    """Optimise the requests of one pass together."""
    other = None if loss_for is None else loss_for(texts)
    tail = build_suffix_forward(view, texts, block, site)
    reads = _HeadPositions.of(texts, tail.initial.device)
    count = int(reads.row_request.max()) + 1
    listed = reads.row_request.tolist()
    firsts = [listed.index(number) for number in range(count)]
    dtype = torch.promote_types(tail.initial.dtype, torch.float32)
    initial = tail.initial[firsts].to(dtype)
    own: list[list[int]] = [[] for _ in range(count)]
    for row, (text, number) in enumerate(zip(texts, listed, strict=True)):
        if text.answer:
            own[number].append(row)
    keys, values = [tail.keys[rows] for rows in own], [tail.values[rows] for rows in own]
    norm = _norms(initial, tail.parts)
    delta = torch.zeros_like(initial, requires_grad=True)
    # Adam works entry by entry, so together is the same as one by one.
    optimizer = torch.optim.Adam([delta], lr=objective.lr)
    losses, steps = torch.zeros(count, dtype=dtype), [0] * count
    searching = torch.arange(count, device=initial.device)
    weights, certain = torch.ones_like(initial[:, 0]), torch.zeros_like(searching)
    before: Tensor | None = None
    for step in range(objective.steps):
        final = step == objective.steps - 1
        with torch.set_grad_enabled(not final):
            loss_of = None if other is None else partial(other, tail, texts)
            seen = _evaluate_objective(
                tail, reads, delta, norm, before, searching, weights, objective, loss_of
            )
        loss = seen.loss
        before = seen.watched if before is None else before
        losses[searching] = loss.detach().to("cpu", losses.dtype)
        certain[searching] += seen.certain
        weights[searching] = torch.where(
            seen.certain, objective.early_stopping.answer_weight, 1.0
        ).to(dtype)
        done = objective.early_stopping.done(certain[searching], seen.certain, seen.divergence)
        going = (loss.detach() >= objective.threshold) & ~done
        if final or not bool(going.any()):
            break
        (delta.grad,) = torch.autograd.grad(loss[going].sum(), delta)
        kept = delta.detach().clone()
        optimizer.step()
        searching = searching[going]
        with torch.no_grad():
            stepped = _clamped(delta[searching], objective.clamp * norm[searching])
            delta.copy_(kept.index_copy(0, searching, stepped))
        for number in searching.tolist():
            steps[number] += 1
        if not bool(going.all()):
            staying = going[reads.row_request]
            texts = [text for text, stays in zip(texts, staying.tolist(), strict=True) if stays]
            before = before[going[reads.watched]]
            tail = tail.select(staying.nonzero().squeeze(1))
            reads = _HeadPositions.of(texts, tail.initial.device)
    return Targets(delta.detach(), initial, keys, values, losses.tolist(), steps)


@dataclass(frozen=True)
class _StepResult:
    """What one pass saw of the requests still searching."""

    loss: Tensor
    divergence: Tensor
    certain: Tensor
    watched: Tensor


def _evaluate_objective(
    tail: SuffixForward,
    reads: _HeadPositions,
    delta: Tensor,
    norm: Tensor,
    before: Tensor | None,
    searching: Tensor,
    weights: Tensor,
    objective: Objective,
    other: Callable[[Tensor], Tensor] | None,
) -> _StepResult:
    """Return the loss of every request still searching, and the watched log-probabilities."""
    own = delta[searching]
    logits = tail.logits(own[reads.row_request], reads.rows, reads.positions)
    divergence = zeros = logits.new_zeros(len(searching))
    if other is not None:
        # It keeps by itself what it compares with, so no word is watched here.
        loss, now = other(logits), logits.new_zeros(len(reads.watched), 0)
    else:
        chosen, now = log_probs(logits, reads.targets)
        nll = mean_by(-chosen, reads.answer_rows, len(reads.answer_request))
        loss = mean_by(nll, reads.answer_request, len(searching)) * weights[searching]
        if len(reads.watched):
            kl = drift(now, now.detach() if before is None else before)
            divergence = objective.kl_factor * zeros.index_add(0, reads.watched, kl)
    decay = objective.weight_decay * (_norms(own, tail.parts) / norm[searching] ** 2).sum(1)
    certain = zeros > 0
    if objective.early_stopping != EarlyStopping():
        likeliest = logits.detach()[: len(reads.targets)].argmax(-1)
        wrong = (likeliest != reads.targets).to(zeros.dtype)
        certain = zeros.index_add(0, reads.answer_request[reads.answer_rows], wrong) == 0
    return _StepResult(loss + divergence + decay, divergence.detach(), certain, now.detach())


def _norms(vectors: Tensor, parts: int) -> Tensor:
    """Return the norm of each part of each vector."""
    norms: Tensor = vectors.reshape(len(vectors), parts, -1).norm(dim=2)
    return norms


def _clamped(delta: Tensor, largest: Tensor) -> Tensor:
    parts = largest.shape[1]
    norm = _norms(delta, parts)
    scale = torch.where(norm > largest, largest / norm, torch.ones_like(norm))
    return (scale[:, :, None] * delta.reshape(len(delta), parts, -1)).flatten(1)
