"""Objective, place and early stopping of the target search.

Both are those of the authors' code of ROME (arXiv 2202.05262, section 3.1) and MEMIT (arXiv
2210.07229, section 4.3), unless marked as ENCORE's or PMET's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_edit.inference.suffix.forward import Site


@dataclass(frozen=True)
class TargetSearch:
    """Target search of a method: where its vectors are added, and to which weights.

    Args:
        site: The output of the last edited layer's MLP or block that vectors are added to, or one
            vector each for attention and MLP.
        weights: ``current``: the model with the edits in force. ``original``: the weights at
            binding.
    """

    site: Site
    weights: Literal["current", "original"] = "current"


@dataclass(frozen=True)
class EarlyStopping:
    """Early stopping once all answer tokens of a request are top-1 (argmax) in all its texts.

    Args:
        patience: Passes with that condition after which the request is done (ENCORE's most-probable
            early stopping); ``None``: no early stopping by patience.
        answer_weight: Weight of the answer loss in the next pass (PMET); 1 changes nothing.
        max_kl: With that condition, the request is done if its KL term is at most this (PMET).
    """

    patience: int | None = None
    answer_weight: float = 1.0
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience counts passes, expected 1 or more, got {self.patience}")

    def done(self, passes: Tensor, is_top1: Tensor, divergence: Tensor) -> Tensor:
        """Return a mask of the requests that stop; ``passes`` counts each one's top-1 passes."""
        done = torch.zeros_like(is_top1)
        if self.patience is not None:
            done = done | (is_top1 & (passes >= self.patience))
        if self.max_kl is not None:
            done = done | (is_top1 & (divergence <= self.max_kl))
        return done


@dataclass(frozen=True)
class Objective:
    """Objective and optimiser settings of the target search.

    The loss over the vector δ of a request: the mean over its texts of the mean negative
    log-likelihood of the answer tokens, plus ``kl_factor`` · KL(now ‖ before) at the watched
    position, plus ``weight_decay`` · ‖δ‖ / ‖h₀‖², with h₀ the site's output on the bare prompt.

    Args:
        steps: Forward passes; the last one does not step.
        lr: Learning rate of Adam.
        kl_factor: Weight of the KL divergence.
        weight_decay: Weight of the norm.
        clamp: ‖δ‖ is projected to at most ``clamp`` · ‖h₀‖ after every step.
        threshold: Loss below which a request is done, before it would step.
        early_stopping: Stopping rule once the answer is top-1.
    """

    steps: int
    lr: float
    kl_factor: float
    weight_decay: float
    clamp: float
    threshold: float
    early_stopping: EarlyStopping = EarlyStopping()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.clamp <= 0:
            raise ValueError(
                "a target search needs steps >= 1, lr > 0 and clamp > 0, got "
                f"steps={self.steps}, lr={self.lr}, clamp={self.clamp}"
            )
