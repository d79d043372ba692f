"""Target search: gradient descent for the vector δ that makes a model predict the new answer.

One vector per request; all requests of a pass are optimised together, and each leaves the batch
when it is done. Objective, positions and stopping rule are those of the authors' code of ROME
(arXiv 2202.05262, section 3.1) and MEMIT (arXiv 2210.07229, section 4.3).

Axis names: ``m`` -- positions read; ``k`` -- answer tokens; ``a`` -- texts with an answer; ``r`` --
rows (texts); ``n`` -- requests; ``w`` -- watched positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.distributed.one_process import ALONE, OneProcess
from lightning_edit.editors.locate.search_objective import EarlyStopping, Objective
from lightning_edit.editors.locate.targets import Targets, part_norms
from lightning_edit.exceptions import SolveError
from lightning_edit.functional.adam import AdamVector
from lightning_edit.functional.losses import drift, log_probs, mean_by
from lightning_edit.inference.suffix.build import build_suffix_forward
from lightning_edit.inference.suffix.forward import HeadPlaces, Site, SuffixForward
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView

Loss = Callable[[SuffixForward, Sequence[TokenizedText], Tensor], Tensor]
"""Loss of a pass without the weight decay, one value per request: from the suffix forward pass, its
texts, and the logits at the answer tokens, then at the watched positions."""


@dataclass(frozen=True)
class _HeadPositions:
    """Positions at which a pass computes logits, for the active requests (numbered 0 … n-1)."""

    places: HeadPlaces
    targets: Int[Tensor, " k"]
    answer_rows: Int[Tensor, " k"]
    row_request: Int[Tensor, " r"]
    answer_request: Int[Tensor, " a"]
    answer_tokens: Float[Tensor, " a"]
    answer_texts: Float[Tensor, " n"]
    bare: Int[Tensor, " n"]
    watched: Int[Tensor, " w"]

    @classmethod
    def of(cls, suffix: SuffixForward, texts: Sequence[TokenizedText]) -> "_HeadPositions":
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

        device = suffix.initial.device
        dtype = torch.promote_types(suffix.initial.dtype, torch.float32)

        def tensor(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        def counts(values: Tensor) -> Tensor:
            return values.bincount().to(dtype)

        of_tokens, of_texts = tensor(answer_rows), tensor(answer_request)
        return cls(
            suffix.places(tensor(rows), tensor(positions)),
            tensor(targets),
            of_tokens,
            tensor([numbers[text.request] for text in texts]),
            of_texts,
            counts(of_tokens),
            counts(of_texts),
            tensor([answer_request.index(number) for number in numbers.values()]),
            tensor([numbers[text.request] for _, text in watching]),
        )

    def nll(self, chosen: Float[Tensor, " k"]) -> Float[Tensor, " a"]:
        """Return each text's mean negative log-likelihood of its answer's tokens."""
        count = len(self.answer_request)
        return mean_by(-chosen, self.answer_rows, count, self.answer_tokens)


def search_targets(
    view: ModelView,
    texts: Sequence[TokenizedText],
    block: int,
    site: Site,
    objective: Objective,
    rows_per_pass: int,
    loss_for: Callable[[Sequence[TokenizedText]], Loss] | None = None,
    progress: Callable[[int, int], None] | None = None,
    through_mlp: bool = False,
    ranks: OneProcess = ALONE,
) -> Targets:
    """Search the target vector of every request with Adam, in batched passes.

    Args:
        view: The language model's structure; the model does not change.
        texts: The texts of all requests, those of one request together, each request's bare prompt
            first.
        block: Block at which vectors are added.
        site: At the output of its MLP, of the block, or of its attention and its MLP.
        objective: Loss weights, optimiser settings and stopping rule.
        rows_per_pass: Most texts per pass, to bound memory; requests are never split.
        loss_for: Builds the loss of a pass from its texts; ``None``: the objective's negative
            log-likelihood and KL divergence.
        progress: Called with steps done and the most steps of all passes.
        through_mlp: For the site ``block``: search at the MLP instead, and return what its vectors
            change in the block's output. Where a norm lies between, the MLP can reach no other
            outputs.
        ranks: The processes that search together; each takes whole passes.

    Returns:
        Target vectors, with keys, values, losses and step counts. A loss that is not finite ends a
        request's search: the last vector with a finite loss stays, 0 if there is none, and the loss
        says so.

    Raises:
        SolveError: If the site's output, whose length is the unit of the search, is zero.
    """
    groups = list(_split_into_passes(texts, rows_per_pass))
    at: Site = "mlp" if through_mlp else site
    total = len(groups) * objective.steps

    def search(number: int) -> Targets:
        # A pass may stop early: the next one begins where it would have ended.
        tell = _steps_of_pass(progress, number * objective.steps, total)

        def run(group: list[TokenizedText]) -> Targets:
            return _search_pass(view, group, block, at, objective, loss_for, tell, through_mlp)

        return _apart_where_broken(groups[number], run)

    found = ranks.deal(range(len(groups)), search)
    if progress is not None:
        progress(total, total)
    order = [request for group in groups for request in dict.fromkeys(t.request for t in group)]
    lines = [part.only(line) for part in found for line in range(len(part.losses))]
    ordered = sorted(zip(order, lines, strict=True), key=lambda pair: pair[0])
    return Targets.concat([line for _, line in ordered])


def _steps_of_pass(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int], None] | None:
    return None if progress is None else lambda step: progress(before + step, total)


def _split_into_passes(
    texts: Sequence[TokenizedText], rows_per_pass: int
) -> Iterator[list[TokenizedText]]:
    """Yield length-sorted passes of whole requests: as few as possible, balanced in size."""
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


def _apart_where_broken(
    texts: list[TokenizedText], run: Callable[[list[TokenizedText]], Targets]
) -> Targets:
    """Search a pass, and those requests again alone whose losses are not finite.

    In packed rows a masked token has weight zero, and zero times NaN is NaN: one request for which
    the model's outputs are not finite would break the search of all others.
    """
    by_request: dict[int, list[TokenizedText]] = {}
    for text in texts:
        by_request.setdefault(text.request, []).append(text)
    found = run(texts)
    if len(by_request) == 1 or all(map(math.isfinite, found.losses)):
        return found
    return Targets.concat(
        [
            found.only(line) if math.isfinite(loss) else run(own)
            for line, (loss, own) in enumerate(zip(found.losses, by_request.values(), strict=True))
        ]
    )


def _search_pass(
    view: ModelView,
    texts: list[TokenizedText],
    block: int,
    site: Site,
    objective: Objective,
    loss_for: Callable[[Sequence[TokenizedText]], Loss] | None,
    tell: Callable[[int], None] | None,
    at_block: bool,
) -> Targets:
    """Optimise the target vectors of one pass together, dropping requests that are done."""
    other = None if loss_for is None else loss_for(texts)
    suffix = build_suffix_forward(view, texts, block, site).for_search()
    head = _HeadPositions.of(suffix, texts)
    count = int(head.row_request.max()) + 1
    listed = head.row_request.tolist()
    bare_rows = [listed.index(number) for number in range(count)]
    bare = suffix.select(torch.tensor(bare_rows, device=head.bare.device)) if at_block else None
    dtype = torch.promote_types(suffix.initial.dtype, torch.float32)
    initial = suffix.initial[bare_rows].to(dtype)
    own: list[list[int]] = [[] for _ in range(count)]
    for row, (text, number) in enumerate(zip(texts, listed, strict=True)):
        if text.answer:
            own[number].append(row)
    keys, values = [suffix.keys[rows] for rows in own], [suffix.values[rows] for rows in own]
    norm = part_norms(initial, suffix.parts)
    _require_length(view, block, site, norm)
    delta = torch.zeros_like(initial, requires_grad=True)
    # Adam is elementwise, so joint optimisation equals one optimiser per request.
    adam = AdamVector(delta, objective.rate(norm, initial.shape[1]))
    losses, steps = torch.zeros(count, dtype=dtype), [0] * count
    nll, nll_before = torch.zeros_like(losses), torch.zeros_like(losses)
    searching = torch.arange(count, device=initial.device)
    weights, top1_passes = torch.ones_like(initial[:, 0]), torch.zeros_like(searching)
    before: Tensor | None = None
    kept, step = delta.detach(), 0
    while step < objective.steps:
        if tell is not None:
            tell(step)
        final = step == objective.steps - 1
        with torch.set_grad_enabled(not final):
            loss_of = None if other is None else partial(other, suffix, texts)
            result = _evaluate_objective(
                suffix, head, delta, norm, before, searching, weights, objective, loss_of
            )
        loss = result.loss
        loss_now, nll_now = (one.to("cpu", losses.dtype) for one in (loss.detach(), result.nll))
        whole = loss_now.isfinite()
        if not bool(whole.all()):
            stays = whole.to(searching.device)
            ended = searching[~stays]
            losses[ended] = loss_now[~whole]
            if step:
                with torch.no_grad():
                    delta[ended] = kept[ended]
            else:
                nll[ended] = nll_before[ended] = nll_now[~whole]
            if not bool(whole.any()):
                break
            # The others are read again: a backward pass would bring them what is not finite.
            searching = searching[stays]
            texts, before, suffix, head = _select(stays, texts, before, suffix, head)
            continue
        before = result.watched if before is None else before
        losses[searching], nll[searching] = loss_now, nll_now
        if step == 0:
            nll_before[searching] = nll_now
        active = loss.detach() >= objective.threshold
        if result.is_top1 is not None:
            top1_passes[searching] += result.is_top1
            weights[searching] = torch.where(
                result.is_top1, objective.early_stopping.answer_weight, 1.0
            ).to(dtype)
            active &= ~objective.early_stopping.done(
                top1_passes[searching], result.is_top1, result.divergence
            )
        going_on = active.tolist()
        if final or not any(going_on):
            break
        rest = loss if all(going_on) else loss[active]
        (gradient,) = torch.autograd.grad(rest.sum(), delta)
        kept = delta.detach().clone()
        adam.step(gradient)
        searching = searching[active]
        with torch.no_grad():
            stepped = _clamp_norms(delta[searching], objective.clamp * norm[searching])
            delta.copy_(kept.index_copy(0, searching, stepped))
        for number in searching.tolist():
            steps[number] += 1
        if not all(going_on):
            texts, before, suffix, head = _select(active, texts, before, suffix, head)
        step += 1
    delta = delta.detach()
    lengths = part_norms(delta, suffix.parts)
    if bare is not None:
        initial, moved = (
            bare.block_output(added).to(dtype) for added in (torch.zeros_like(delta), delta)
        )
        # A vector of zero moves nothing, also where the block's output is not finite.
        delta = (moved - initial).masked_fill((lengths == 0).all(1, keepdim=True), 0)
    figures = losses.tolist(), steps, nll.tolist(), nll_before.tolist()
    return Targets(delta, initial, keys, values, *figures, lengths, norm)


def _select(
    active: Tensor,
    texts: list[TokenizedText],
    before: Tensor | None,
    suffix: SuffixForward,
    head: _HeadPositions,
) -> tuple[list[TokenizedText], Tensor | None, SuffixForward, _HeadPositions]:
    """Return what a pass needs for those of its requests that go on."""
    kept_rows = active[head.row_request]
    texts = [text for text, stays in zip(texts, kept_rows.tolist(), strict=True) if stays]
    before = None if before is None else before[active[head.watched]]
    suffix = suffix.select(kept_rows.nonzero().squeeze(1))
    return texts, before, suffix, _HeadPositions.of(suffix, texts)


def _require_length(view: ModelView, block: int, site: Site, norm: Float[Tensor, "n p"]) -> None:
    """Check that the site's output has a length: rate, decay and bound are shares of it.

    One that is not finite has a loss that is not, which ends its request alone.
    """
    wrong = (norm == 0).any(1)
    if not bool(wrong.any()):
        return
    found = view.block(block)
    place = found.name if site == "block" else found.mlp_down
    if site == "attention+mlp":
        place = f"{found.name} (its attention, or {place})"
    first = ", ".join(f"{value:g}" for value in norm[wrong][0].tolist())
    raise SolveError(
        f"target search: at the subjects of {int(wrong.sum())} of {len(norm)} requests "
        f"{place} returns vectors of the norm {first}, expected ones above 0; edit another layer"
    )


@dataclass(frozen=True)
class _StepResult:
    """Loss and stopping signals of one optimisation step, for the active requests."""

    loss: Tensor
    divergence: Tensor
    is_top1: Tensor | None
    watched: Tensor
    nll: Tensor


def _evaluate_objective(
    suffix: SuffixForward,
    head: _HeadPositions,
    delta: Tensor,
    norm: Tensor,
    before: Tensor | None,
    searching: Tensor,
    weights: Tensor,
    objective: Objective,
    other: Callable[[Tensor], Tensor] | None,
) -> _StepResult:
    """Evaluate the search objective of every active request: NLL, KL divergence, weight decay."""
    own = delta[searching]
    logits = suffix.logits_at(own[head.row_request], head.places)
    divergence = zeros = logits.new_zeros(len(searching))
    if other is not None:
        # A custom loss holds its own reference, so no position is watched here.
        loss, now = other(logits), logits.new_zeros(len(head.watched), 0)
        with torch.no_grad():
            chosen, _ = log_probs(logits[: len(head.targets)], head.targets)
            nll = head.nll(chosen)
    else:
        chosen, now = log_probs(logits, head.targets)
        nll = head.nll(chosen)
        loss = mean_by(nll, head.answer_request, len(searching), head.answer_texts)
        if objective.early_stopping != EarlyStopping():
            loss = loss * weights[searching]
        if len(head.watched):
            kl = drift(now, now.detach() if before is None else before)
            divergence = objective.kl_factor * zeros.index_add(0, head.watched, kl)
    decay = objective.decay(part_norms(own, suffix.parts), norm[searching])
    is_top1 = None
    if objective.early_stopping != EarlyStopping():
        likeliest = logits.detach()[: len(head.targets)].argmax(-1)
        wrong = (likeliest != head.targets).to(zeros.dtype)
        is_top1 = zeros.index_add(0, head.answer_request[head.answer_rows], wrong) == 0
    total, bare = loss + divergence + decay, nll.detach()[head.bare]
    return _StepResult(total, divergence.detach(), is_top1, now.detach(), bare)


def _clamp_norms(delta: Tensor, largest: Tensor) -> Tensor:
    parts = largest.shape[1]
    norm = part_norms(delta, parts)
    scale = torch.where(norm > largest, largest / norm, torch.ones_like(norm))
    return (scale[:, :, None] * delta.reshape(len(delta), parts, -1)).flatten(1)
