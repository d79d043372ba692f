"""Losses and validation scores of an editor that routes (SERAC, and EasyEdit's form of it)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.editors.routing.scope_batch import ScopeBatch, ScopeRow
from lightning_edit.editors.routing.scope_classifier import ScopeClassifier
from lightning_edit.exceptions import DataError
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.functional.measures import agreement, mean, means_by_request
from lightning_edit.functional.scope import THRESHOLD, balanced_bce, mixed_log_probabilities
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.responder import Responder, Statement
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder, PromptText
from lightning_edit.types import EditRequest


def scope_terms(texts: ScopeBatch, scope: ScopeClassifier, negatives: str) -> dict[str, Tensor]:
    """Return the balanced cross-entropy of a scope classifier, and what it has right.

    Args:
        texts: Edits with questions in and out of scope.
        scope: The classifier.
        negatives: Pairs out of scope, ``diagonal``, ``all`` or ``batch``; see
            :class:`~lightning_edit.editors.routing.serac.SERAC`.

    Returns:
        ``scope_bce`` in nats; ``scope_inside`` and ``scope_outside``, the shares of pairs on the
        right side.
    """
    near = [(number, row.edit) for number, row in enumerate(texts.inside)]
    far = _pairs_outside(texts, negatives)
    questions = [row.prompt for row in (*texts.inside, *texts.outside)]
    scores = scope.pair_scores(texts.edits, questions, [*near, *far])
    labels = torch.zeros_like(scores)
    labels[: len(near)] = 1
    found = scores.detach().exp() > THRESHOLD
    return {
        "scope_bce": balanced_bce(scores, labels),
        "scope_inside": found[: len(near)].float().mean(),
        "scope_outside": (~found[len(near) :]).float().mean() if far else scores.new_ones(()),
    }


def _pairs_outside(texts: ScopeBatch, negatives: str) -> list[tuple[int, int]]:
    """List questions and edits that do not belong together, by the numbers of both."""
    first = 0 if negatives == "batch" else len(texts.inside)
    listed = (*texts.inside, *texts.outside)
    pairs = []
    for number, row in enumerate(listed[first:], first):
        edits = (row.edit,) if negatives == "diagonal" else range(len(texts.edits))
        pairs += [(number, edit) for edit in edits if edit not in row.scope]
    return pairs


def edit_nll(texts: ScopeBatch, model: Any, prompts: PromptEncoder, end: Ids) -> Tensor:
    """Return the loss of a counterfactual model that reads each edit and its question, in nats.

    Args:
        texts: Edits with questions in scope.
        model: The counterfactual model.
        prompts: Its token ids.
        end: Tokens behind an answer.
    """
    contexts = [texts.edits[row.edit].context for row in texts.inside]
    told = _rows(prompts, texts.inside, contexts)
    rows = AnswerRows.of(model, [(prompt, (*answer, *end)) for prompt, answer in told])
    return nn.functional.cross_entropy(answer_logits(model, rows).float(), rows.targets)


def mixture_terms(
    texts: ScopeBatch,
    scope: ScopeClassifier,
    models: tuple[Any, Any],
    prompts: tuple[PromptEncoder, PromptEncoder],
) -> dict[str, Tensor]:
    """Return the terms of EasyEdit's loss: the mixture on edits, its divergence elsewhere.

    Args:
        texts: Edits with questions in and out of scope; the most similar edit of all is mixed in.
        scope: The classifier.
        models: Base model and counterfactual model.
        prompts: Their token ids.

    Returns:
        ``edit_nll`` and ``locality_kl``, of the mixture from the base model, in nats a token.
    """
    listed = (*texts.inside, *texts.outside)
    pairs = [(q, e) for q in range(len(listed)) for e in range(len(texts.edits))]
    scores = scope.pair_scores(texts.edits, [row.prompt for row in listed], pairs)
    best, chosen = scores.view(len(listed), -1).max(-1)
    contexts = [texts.edits[number].context for number in chosen.tolist()]
    plain = AnswerRows.of(models[0], _rows(prompts[0], listed, [""] * len(listed)))
    told = AnswerRows.of(models[1], _rows(prompts[1], listed, contexts))
    with torch.no_grad():
        base = answer_logits(models[0], plain).float()
    other = answer_logits(models[1], told).float()
    mixed = mixed_log_probabilities(base, other, best.exp()[plain.rows])
    inside = plain.rows < len(texts.inside)
    nll = nn.functional.nll_loss(mixed[inside], plain.targets[inside])
    kl = drift_kl(base[~inside], mixed[~inside]) if texts.outside else nll.new_zeros(())
    return {"edit_nll": nll, "locality_kl": kl}


def _rows(
    prompts: PromptEncoder, rows: Sequence[ScopeRow], contexts: Sequence[str]
) -> list[AnswerRow]:
    told = [
        PromptText(context + row.prompt, row.answer, None, row.separator)
        for row, context in zip(rows, contexts, strict=True)
    ]
    try:
        return [(one.prompt, one.answer) for one in prompts.encode(told)]
    except ValueError as error:
        raise DataError(str(error)) from error


def edit_scores(request: EditRequest, edited: Responder, base: Responder) -> dict[str, float]:
    """Score one edit that is alone in force, by teacher forcing, as an evaluation does.

    Args:
        request: The edit.
        edited: What is asked with the edit.
        base: What is asked without it.

    Returns:
        ``reliability/em@tf``, ``generalization/em@tf``, ``locality/kept@tf``, where it has probes.
    """
    probes = list(request.all_probes())
    own = [one for one in probes if one.aspect in ("reliability", "generalization")]
    held = [one for one in probes if one.expect == "unchanged"]
    asked = [Statement(one.prompt, one.answers[0], request.separator) for one in (*own, *held)]
    found = edited.loglikelihood(asked)
    before = base.loglikelihood(asked[len(own) :])
    values: dict[str, list[float]] = {}
    for probe, score in zip(own, found, strict=False):
        values.setdefault(f"{probe.aspect}/em@tf", []).append(float(score.is_greedy))
    scores = {name: mean(listed) for name, listed in values.items()}
    pairs = zip(found[len(own) :], before, strict=True)
    if kept := [agreement(new.best, old.best) for new, old in pairs]:
        kinds = [one.kind for one in held]
        scores["locality/kept@tf"] = means_by_request(kept, [0] * len(kept), kinds)[0]
    return scores
