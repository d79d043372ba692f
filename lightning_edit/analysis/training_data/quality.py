"""Quality of an attribution where causes are known: AUC and recall@k, with intervals over facts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_auroc, retrieval_recall

from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText
from lightning_edit.functional.bootstrap import Floats, Resampling


def known_causes(texts: Sequence[TrainingText], facts: Sequence[TracedFact]) -> Bool[Tensor, "n q"]:
    """Return which training texts are known causes of which facts.

    Args:
        texts: The training texts.
        facts: The facts.
    """
    rows = [[text.id in set(fact.causes) for fact in facts] for text in texts]
    return torch.tensor(rows, dtype=torch.bool)


def fact_quality(
    scores: Float[Tensor, "n q"], causes: Bool[Tensor, "n q"], at: Sequence[int]
) -> dict[str, Floats]:
    """Return AUC and recall@k of each fact's ranking of the training texts; NaN without causes.

    Args:
        scores: Scores of a method, high for causes.
        causes: Which texts are causes.
        at: The k of recall@k: the share of a fact's causes among its first k texts.
    """
    names = ["auc", *(f"recall@{k}" for k in at)]
    found = {name: np.full(scores.shape[1], np.nan) for name in names}
    for fact in range(scores.shape[1]):
        truth, given = causes[:, fact], _ranks(scores[:, fact])
        if not truth.any() or truth.all():
            continue
        found["auc"][fact] = float(retrieval_auroc(given, truth))
        for k in at:
            found[f"recall@{k}"][fact] = float(retrieval_recall(given, truth, k))
    return found


def quality_table(
    scores: Mapping[str, Float[Tensor, "n q"]],
    causes: Bool[Tensor, "n q"],
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, Any]]:
    """Return means over facts with 95 % intervals (paired bootstrap), by method and metric.

    Args:
        scores: Scores by method.
        causes: Which texts are causes.
        at: The k of recall@k.
    """
    resampling = Resampling(causes.shape[1])
    table: dict[str, dict[str, Any]] = {}
    for method, values in scores.items():
        for name, each in fact_quality(values, causes, at).items():
            mean = resampling.mean(each[None, :])
            if mean is not None:
                table.setdefault(method, {})[name] = {
                    "mean": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                    "n": mean.n,
                }
    return table


def _ranks(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ranks in (0, 1], equal for equal scores: torchmetrics squashes any other numbers.

    It takes values outside [0, 1] for logits, whose sigmoid makes large ones equal, and leaves
    texts of negative score out of the recall.
    """
    distinct, place = torch.unique(scores, return_inverse=True)
    ranks: Tensor = (place + 1) / len(distinct)
    return ranks
