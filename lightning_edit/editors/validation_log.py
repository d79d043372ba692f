"""Scores of a trained editor's validation and test, logged as means over all processes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch

#: Scores of every validation, whether a batch has such prompts or not.
SCORES = ("reliability/em@tf", "generalization/em@tf", "locality/kept@tf")


def log_evaluation(
    module: pl.LightningModule,
    stage: str,
    scores: Mapping[str, Sequence[float]],
    terms: Mapping[str, Any],
    edits: int,
) -> None:
    """Log the scores and the loss of a batch of edits.

    Each score is a mean over the requests that have it, each term of the loss one over batches by
    their edits; with several processes over those of all, so that checkpoints and early stopping
    see the whole data.

    Args:
        module: The LightningModule whose hook runs.
        stage: ``val`` or ``test``, the prefix of the names.
        scores: A value for each request that has one, by name.
        terms: Terms of the loss, means over the batch, by name.
        edits: Number of edits of the batch.
    """
    several = module.trainer.world_size > 1
    names = list(dict.fromkeys((*SCORES, *scores)))
    counts = torch.tensor([float(len(scores.get(name, ()))) for name in names])
    # A process that left out a name that others log would keep them waiting for its share.
    everyones = module.trainer.strategy.reduce(counts.to(module.device), reduce_op="sum")
    for name, count in zip(names, everyones.tolist(), strict=True):
        values = scores.get(name, ())
        if count:
            module.log(
                f"{stage}/{name}",
                fmean(values) if values else 0.0,
                prog_bar=True,
                batch_size=len(values),
                sync_dist=several,
            )
    for name, value in terms.items():
        module.log(
            f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=edits, sync_dist=several
        )
