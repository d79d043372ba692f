"""Editing metrics as torchmetrics, computed from probe outcomes. See ``docs/metrics.md``."""

from lightning_edit.metrics.aspects import ASPECTS, MEASURES, AspectScores, request_means, summarise
from lightning_edit.metrics.collapse import NgramEntropy, Perplexity
from lightning_edit.metrics.criteria import CriterionScores, case_values
from lightning_edit.metrics.drift import HiddenDistance, Retention, Trend, WeightGrowth
from lightning_edit.metrics.efficiency import EditCost, RuntimeCost
from lightning_edit.metrics.overfitting import Leak, Overfitting
from lightning_edit.metrics.ripple import RippleScores

__all__ = [
    "ASPECTS",
    "MEASURES",
    "AspectScores",
    "CriterionScores",
    "EditCost",
    "HiddenDistance",
    "Leak",
    "NgramEntropy",
    "Overfitting",
    "Perplexity",
    "Retention",
    "RippleScores",
    "RuntimeCost",
    "Trend",
    "WeightGrowth",
    "case_values",
    "request_means",
    "summarise",
]
