"""Objective, place and early stopping of the target search.

Both are those of the authors' code of ROME (arXiv 2202.05262, section 3.1) and MEMIT (arXiv
2210.07229, section 4.3), unless marked as ENCORE's or PMET's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.inference.suffix.forward import Site

#: ``lr="auto"``: steps of Adam from the start to the bound, as long as signs do not change.
STEPS_TO_BOUND = 4.0
#: ``weight_decay="auto"``: penalty on a vector as long as h₀, in nats.
DECAY = 0.01


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
        lr: Learning rate of Adam; ``auto``: for each part of each vector the rate at which
            :data:`STEPS_TO_BOUND` steps, each against the signs of the gradient, come to the bound.
        kl_factor: Weight of the KL divergence.
        weight_decay: Weight of ‖δ‖ / ‖h₀‖²; ``auto``: the penalty is :data:`DECAY` · ‖δ‖ / ‖h₀‖.
        clamp: ‖δ‖ is projected to at most ``clamp`` · ‖h₀‖ after every step.
        threshold: Loss below which a request is done, before it would step.
        early_stopping: Stopping rule once the answer is top-1.
    """

    steps: int
    lr: float | Literal["auto"]
    kl_factor: float
    weight_decay: float | Literal["auto"]
    clamp: float
    threshold: float
    early_stopping: EarlyStopping = EarlyStopping()

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.lr != "auto" and self.lr <= 0) or self.clamp <= 0:
            raise ValueError(
                "a target search needs steps >= 1, lr > 0 and clamp > 0, got "
                f"steps={self.steps}, lr={self.lr}, clamp={self.clamp}"
            )

    def rate(self, norms: Float[Tensor, "n p"], width: int) -> float | Float[Tensor, "n w"]:
        """Return Adam's learning rate, a number or one for each entry of each vector.

        Args:
            norms: ‖h₀‖ of each part.
            width: Entries of a vector, of all its parts.
        """
        if self.lr != "auto":
            return self.lr
        each = width // norms.shape[1]
        rates: Tensor = self.clamp * norms / (STEPS_TO_BOUND * each**0.5)
        return rates.repeat_interleave(each, dim=1)

    def chosen(self, norms: Float[Tensor, "n p"], width: int) -> dict[str, float]:
        """Return what ``auto`` rate and decay are with the first bound, in the mean of a batch.

        Args:
            norms: ‖h₀‖ of each part.
            width: Entries of a vector, of all its parts.
        """
        found = {}
        if self.lr == "auto":
            found["lr"] = float(torch.as_tensor(self.rate(norms, width)).mean())
        if self.weight_decay == "auto":
            found["weight_decay"] = DECAY * float(norms.mean())
        return found

    def decay(
        self, lengths: Float[Tensor, "n p"], norms: Float[Tensor, "n p"]
    ) -> Float[Tensor, " n"]:
        """Return the penalty on the vectors' lengths, in nats.

        Args:
            lengths: ‖δ‖ of each part.
            norms: ‖h₀‖ of each part.
        """
        if self.weight_decay == "auto":
            return DECAY * (lengths / norms).sum(1)
        return self.weight_decay * (lengths / norms**2).sum(1)
