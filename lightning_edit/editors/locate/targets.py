"""Target vectors: what a search found, and what it started from.

Axis names: ``n`` -- requests; ``r`` -- rows (texts); ``d`` -- hidden width; ``f`` -- key width;
``w`` -- width of the site: d, or 2d where one vector is searched for attention and one for the MLP;
``p`` -- parts of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def part_norms(vectors: Float[Tensor, "n w"], parts: int) -> Float[Tensor, "n p"]:
    """Return the norm of each part of vectors (of the attention's and of the MLP's).

    Args:
        vectors: Vectors at the site.
        parts: Parts of a vector: two where one is searched for attention and one for the MLP.
    """
    norms: Tensor = vectors.reshape(len(vectors), parts, -1).norm(dim=2)
    return norms


@dataclass(frozen=True)
class Targets:
    """Target vectors found by a search, one row per request.

    Args:
        delta: The vectors δ.
        initial: h₀, the site's output on the bare prompt.
        keys: Inputs of the site's down-projection at the subject, one row per text with an answer.
        values: Outputs of the same layer.
        losses: Final loss of each request.
        steps: Optimiser steps taken.
        nll: Negative log-likelihood of each answer after its bare prompt, with δ added.
        nll_before: The same without δ.
        lengths: Norms of the parts of each vector where it was searched: behind a norm that is the
            MLP's output, while ``delta`` is what the block's output moves by.
        norms: Norms of the parts of h₀ there.
    """

    delta: Float[Tensor, "n w"]
    initial: Float[Tensor, "n w"]
    keys: list[Float[Tensor, "r f"]]
    values: list[Float[Tensor, "r d"]]
    losses: list[float]
    steps: list[int]
    nll: list[float]
    nll_before: list[float]
    lengths: Float[Tensor, "n p"]
    norms: Float[Tensor, "n p"]

    @property
    def wanted(self) -> Float[Tensor, "n w"]:
        """The target vectors h₀ + δ."""
        return self.initial + self.delta

    def only(self, number: int) -> "Targets":
        """Return the targets of one request."""
        return self.select([number])

    def select(self, numbers: Sequence[int]) -> "Targets":
        """Return the targets of some requests.

        Args:
            numbers: Their rows.
        """
        return Targets(
            self.delta[numbers],
            self.initial[numbers],
            [self.keys[n] for n in numbers],
            [self.values[n] for n in numbers],
            [self.losses[n] for n in numbers],
            [self.steps[n] for n in numbers],
            [self.nll[n] for n in numbers],
            [self.nll_before[n] for n in numbers],
            self.lengths[numbers],
            self.norms[numbers],
        )

    @classmethod
    def concat(cls, parts: Sequence["Targets"]) -> "Targets":
        """Concatenate the targets of several searches.

        Args:
            parts: At least one of them.
        """
        return cls(
            torch.cat([part.delta for part in parts]),
            torch.cat([part.initial for part in parts]),
            [keys for part in parts for keys in part.keys],
            [values for part in parts for values in part.values],
            [loss for part in parts for loss in part.losses],
            [steps for part in parts for steps in part.steps],
            [nll for part in parts for nll in part.nll],
            [nll for part in parts for nll in part.nll_before],
            torch.cat([part.lengths for part in parts]),
            torch.cat([part.norms for part in parts]),
        )
