"""What a target search minimises, and when a request is done.

Objective and stopping rule are those of the authors' code of ROME (arXiv 2202.05262, section 3.1)
and MEMIT (arXiv 2210.07229, section 4.3); what is ENCORE's or PMET's says so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EarlyStopping:
    """What happens once all answer tokens are the likeliest ones in all texts of a request.

    Args:
        patience: The request is done in the so-manieth pass in which that holds (ENCORE's
            most-probable early stopping); ``None``: it is no reason to stop.
        answer_weight: Weight of the answer in the next pass (PMET); 1 changes nothing.
        max_kl: The request is done if besides the divergence's term is at most this (PMET).
    """

    patience: int | None = None
    answer_weight: float = 1.0
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience counts passes, expected 1 or more, got {self.patience}")

    def done(self, passes: Tensor, certain: Tensor, divergence: Tensor) -> Tensor:
        """Return which requests are done; ``passes``: in how many it has held for each."""
        done = torch.zeros_like(certain)
        if self.patience is not None:
            done = done | (certain & (passes >= self.patience))
        if self.max_kl is not None:
            done = done | (certain & (divergence <= self.max_kl))
        return done


@dataclass(frozen=True)
class Objective:
    """What the search minimises, and how.

    Over the vector δ of a request: the mean over its texts of the mean negative log-likelihood of
    the answer's tokens, plus ``kl_factor`` · KL(now ‖ before) at the watched position, plus
    ``weight_decay`` · ‖δ‖ / ‖h₀‖², with h₀ the site's output on the bare prompt.

    Args:
        steps: Passes; the last one does not step.
        lr: Learning rate of Adam.
        kl_factor: Weight of the divergence.
        weight_decay: Weight of the norm.
        clamp: After every step ‖δ‖ is cut to ``clamp`` · ‖h₀‖.
        threshold: A request whose loss is below this is done, before it would step.
        early_stopping: What happens once the answer is the likeliest one.
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
