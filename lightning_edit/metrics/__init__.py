"""torchmetrics over outcomes of probes. Definitions: ``docs/metrics.md``."""

from lightning_edit.metrics.aspects import ASPECTS, MEASURES, AspectScores, request_means, summarise

__all__ = ["ASPECTS", "MEASURES", "AspectScores", "request_means", "summarise"]
