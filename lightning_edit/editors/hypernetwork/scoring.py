"""Teacher-forced scores of predicted edits on their rephrases and probes, in bounded passes.

Axis names: ``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows

OwnedRow = tuple[int, AnswerRow]
"""Index of an edit, and a prompt with its answer that scores it."""
EditedReader = Callable[[Sequence[OwnedRow]], tuple[AnswerRows, Float[Tensor, "a v"]]]
"""Pads rows and returns them with an edited model's logits at their answers."""


@dataclass(frozen=True)
class RowScores:
    """Scores of a batch of edits.

    Args:
        right: Whether the new answer is top-1, of the edits' own prompts and then of rephrases.
        kept: Share of unchanged top-1 tokens of each locality prompt.
        nll: Mean negative log-likelihood of the new answers' tokens on rephrases, in nats; on the
            edits' own prompts if there are none.
        kl: Mean KL divergence of the edited from the unedited model at the answers of locality
            prompts, in nats.
    """

    right: list[float]
    kept: list[float]
    nll: Tensor
    kl: Tensor


def score_rows(
    edited: EditedReader,
    unedited: Callable[[Sequence[OwnedRow]], Float[Tensor, "a v"]],
    rewrites: Sequence[OwnedRow],
    outer: Sequence[OwnedRow],
    locality: Sequence[OwnedRow],
    size: int,
) -> RowScores:
    """Score an edited model in passes of a given size.

    Args:
        edited: Reader of the edited model.
        unedited: Logits of the unedited model.
        rewrites: The edits' own prompts.
        outer: Their rephrases.
        locality: Prompts whose answers must not change.
        size: Most rows per pass.
    """
    right: list[float] = []
    kept: list[float] = []
    nll = _Mean()
    kl = _Mean()
    for rows, counts in ((rewrites, not outer), (outer, True)):
        for part in _parts(rows, size):
            batch, logits = edited(part)
            right += batch.verdicts(logits).right.float().tolist()
            if counts:
                loss = nn.functional.cross_entropy(logits.float(), batch.targets)
                nll.add(loss, len(batch.targets))
    for part in _parts(locality, size):
        batch, logits = edited(part)
        old = unedited(part)
        same = batch.verdicts(logits).best == old.argmax(-1)
        kept += batch.per_row(same.float()).tolist()
        kl.add(drift_kl(old, logits), len(batch.targets))
    return RowScores(right, kept, nll.value(), kl.value())


class _Mean:
    """Mean of means, by number of tokens."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def add(self, mean: Tensor, count: int) -> None:
        self.total = self.total.to(mean.device) + mean * count
        self.count += count

    def value(self) -> Tensor:
        return self.total / max(1, self.count)


def _parts(rows: Sequence[OwnedRow], size: int) -> list[Sequence[OwnedRow]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
