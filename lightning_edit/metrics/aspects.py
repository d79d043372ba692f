"""Scores by aspect (reliability, generalization, locality, portability) from probe outcomes.

Axis names: ``g`` -- groups (the aspects, then the kinds); ``m`` -- measures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.evaluation.judges import JudgeLike, find_judge, judged
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.measures import mean
from lightning_edit.metrics.criteria import CriterionScores
from lightning_edit.types import ASPECT_OF_KIND

MEASURES: tuple[str, ...] = (
    "em@tf",
    "judge@gen",
    "answer@gen",
    "em@gen",
    "contains@gen",
    "kept@tf",
    "kept@gen",
    "token_acc@tf",
    "nll@tf",
    "margin@tf",
    "margin_sign@tf",
)
"""Measures of a probe that are averaged, see ``docs/metrics.md``."""

ASPECTS: tuple[str, ...] = tuple(dict.fromkeys(ASPECT_OF_KIND.values()))
_KINDS_OF = {
    aspect: [kind for kind, of in ASPECT_OF_KIND.items() if of == aspect] for aspect in ASPECTS
}
#: Kinds with a metric name of their own; an aspect with one kind needs none.
_NAMED_KINDS = {
    kind: f"{aspect}.{kind}" for aspect, kinds in _KINDS_OF.items() for kind in kinds if kinds[1:]
}
_GROUPS: tuple[str, ...] = (*ASPECTS, *_NAMED_KINDS.values())
#: First letter of COUNTERFACT's scores, and the group of each.
_COUNTERFACT = {"E": "reliability", "P": "generalization", "N": "locality.neighborhood"}


def request_means(scores: Sequence[ProbeScore]) -> dict[tuple[str, str], float]:
    """Average the probe outcomes of *one* request, by group and measure.

    As in COUNTERFACT the probes of a request are averaged first, so that a request with many probes
    does not outweigh one with few. An aspect's value is the mean over its kinds, so that a kind
    with many probes does not outweigh the others.

    Args:
        scores: Outcomes of the request's probes.

    Returns:
        Values by group (``locality``, ``locality.neighborhood``) and measure (``kept@tf``); what
        does not apply is absent.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        for measure, value in score.measures().items():
            values.setdefault((score.kind, measure), []).append(value)
    of_kind = {name: mean(listed) for name, listed in values.items()}
    of_aspect: dict[tuple[str, str], list[float]] = {}
    for (kind, measure), value in of_kind.items():
        of_aspect.setdefault((ASPECT_OF_KIND[kind], measure), []).append(value)
    named = {
        (_NAMED_KINDS[kind], measure): value
        for (kind, measure), value in of_kind.items()
        if kind in _NAMED_KINDS
    }
    return {name: mean(listed) for name, listed in of_aspect.items()} | named


def counterfact_names(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute COUNTERFACT's scores by their published names (ROME, arXiv 2202.05262).

    Args:
        values: Values of :class:`AspectScores`.

    Returns:
        ``counterfact/ES@tf``, ``PS``, ``NS`` and the magnitudes ``EM``, ``PM``, ``NM``, as far as
        they exist; ``S``, the harmonic mean of the first three, where all of them do.
    """
    named = {
        f"counterfact/{short}{letter}@tf": values[f"{group}/{measure}@tf"]
        for short, group in _COUNTERFACT.items()
        for letter, measure in (("S", "margin_sign"), ("M", "margin"))
        if f"{group}/{measure}@tf" in values
    }
    parts = [named.get(f"counterfact/{short}S@tf") for short in _COUNTERFACT]
    shares = [part for part in parts if part is not None]
    if len(shares) == len(parts):
        smallest = torch.stack(shares).min()
        total = torch.stack([part.reciprocal() for part in shares]).sum()
        named["counterfact/S@tf"] = smallest if smallest == 0 else len(shares) / total
    return named


class AspectScores(Metric):
    """Reliability, generalization, locality, portability and known facts, in every measure.

    ``compute`` returns ``<aspect>/<measure>@<mode>`` and, for aspects of several kinds,
    ``<aspect>.<kind>/<measure>@<mode>``: means over requests of :func:`request_means`. It also
    returns ``<group>/n`` (number of requests in a group), ``<group>/<measure>@<mode>/n`` where the
    measure is of fewer, such as margins, which need a contrast, ``<group>/probes``, and
    :func:`counterfact_names`. What was not measured has no key. States are sums, so each process
    may hold any share of the requests, even none; a rank without requests calls ``update([])``.

    Args:
        judge: What decides whether a generated text is right, see
            :mod:`lightning_edit.evaluation.judges`. Outcomes that were judged before keep their
            verdict under the default.
        **kwargs: As for ``torchmetrics.Metric``.

    Example:
        >>> from lightning_edit.evaluation.outcomes import AnswerScore
        >>> answer = AnswerScore("Lyon", target_ids=(5,), argmax_ids=(5,), nlls=(0.1,))
        >>> metric = AspectScores()
        >>> metric.update([ProbeScore("e", "rewrite", "It is", ("Lyon",), "target", (answer,))])
        >>> round(metric.compute()["reliability/em@tf"].item(), 2)
        1.0
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    counts: Tensor
    requests: Tensor
    probes: Tensor

    def __init__(self, judge: JudgeLike = "answer_first", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge = find_judge(judge)
        shape = (len(_GROUPS), len(MEASURES))
        # float64: a mean over many requests prints the same digits in any order of summation.
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name, size in [("counts", shape), ("requests", shape[:1]), ("probes", shape[:1])]:
            self.add_state(name, torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Sequence[ProbeScore]) -> None:
        """Add probe outcomes of whole requests.

        Args:
            scores: Outcomes; all of one request must come in one call. A rank without requests
                passes an empty list.
        """
        by_request: dict[str, list[ProbeScore]] = {}
        for score in judged(scores, self.judge):
            by_request.setdefault(score.edit_id, []).append(score)
            for group in _groups_of(score):
                self.probes[_GROUPS.index(group)] += 1
        for of_request in by_request.values():
            for (group, measure), value in request_means(of_request).items():
                place = _GROUPS.index(group), MEASURES.index(measure)
                self.sums[place] += value
                self.counts[place] += 1
            for group in {group for score in of_request for group in _groups_of(score)}:
                self.requests[_GROUPS.index(group)] += 1

    def compute(self) -> dict[str, Tensor]:
        """Compute means over requests, by metric name, and counts."""
        result = {}
        for row, group in enumerate(_GROUPS):
            if self.probes[row] == 0:
                continue
            for column, measure in enumerate(MEASURES):
                if self.counts[row, column] > 0:
                    value = self.sums[row, column] / self.counts[row, column]
                    result[f"{group}/{measure}"] = value
                    if self.counts[row, column] < self.requests[row]:
                        result[f"{group}/{measure}/n"] = self.counts[row, column]
            result[f"{group}/n"] = self.requests[row]
            result[f"{group}/probes"] = self.probes[row]
        return result | counterfact_names(result)


def _groups_of(score: ProbeScore) -> list[str]:
    named = _NAMED_KINDS.get(score.kind)
    return [score.aspect] if named is None else [score.aspect, named]


def summarise(scores: Sequence[ProbeScore]) -> dict[str, float]:
    """Summarise probe outcomes on one process: all scores, by aspect and by criterion, as floats.

    Args:
        scores: Outcomes of whole cases.
    """
    return compute_all(
        [AspectScores(sync_on_compute=False), CriterionScores(sync_on_compute=False)], scores
    )


def compute_all(metrics: Sequence[Metric], scores: Sequence[ProbeScore]) -> dict[str, float]:
    """Update metrics with probe outcomes and compute them, as floats.

    Args:
        metrics: New metrics of this package; ``sync_on_compute`` decides whether they synchronise.
        scores: This process's outcomes of whole cases.
    """
    values: dict[str, Tensor] = {}
    for metric in metrics:
        metric.update(scores)
        values |= metric.compute()
    return to_floats(values)


def to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Convert scalar tensors to floats."""
    return {name: value.item() for name, value in values.items()}
