"""Losses of T-Patcher: label-smoothed edit loss, activation loss, memory loss.

Axis names: ``n`` -- extra neurons; ``r`` -- rows of an edit; ``m`` -- hidden states in memory;
``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Margins(NamedTuple):
    """Margins of the activation and the memory loss.

    Args:
        fire: m_a: pre-activation that a neuron should have on its own hidden state.
        apart: m1: distance that memory should keep from it.
        silent: m2: pre-activation below which memory should stay.
    """

    fire: float
    apart: float
    silent: float


#: Margins by name: those in effect in the authors' two code paths.
MARGINS = {"fever": Margins(0.0, 3.0, -3.0), "zsre": Margins(0.0, 0.0, 0.0)}


def mean_of_largest(values: Float[Tensor, "..."], count: int, copies: int = 1) -> Float[Tensor, ""]:
    """Return the mean of the largest values, in a list that holds every value several times.

    Args:
        values: The distinct values, of any shape.
        count: Number of largest ones, copies counted.
        copies: How often each value occurs in the list.

    Example:
        >>> mean_of_largest(torch.tensor([1.0, 4.0, 2.0]), 3, copies=2)
        tensor(3.3333)
    """
    flat = values.flatten()
    wanted = min(count, len(flat) * copies)
    kept = flat.topk(-(-wanted // copies)).values
    last = wanted - (len(kept) - 1) * copies  # copies of the smallest one that still count
    return (kept[:-1].sum() * copies + kept[-1] * last) / wanted


def activation_loss(
    own: Float[Tensor, "r n"], margin: float, worst: int = 5, copies: int = 1
) -> Float[Tensor, ""]:
    """Return the activation loss, the mean over the worst of exp(m_a − a(E)).

    Args:
        own: a(E), each neuron's pre-activation on its own hidden state.
        margin: m_a.
        worst: Number of values in the mean.
        copies: Copies of the edit in the authors' batch, which is 8.
    """
    return mean_of_largest(torch.exp(margin - own), worst, copies)


def memory_loss(
    own: Float[Tensor, "r n"],
    memory: Float[Tensor, "m n"],
    margins: Margins,
    worst: int = 1000,
    copies: int = 1,
) -> Float[Tensor, ""]:
    """Return the memory loss: worst exp(a(M) − a(E) + m1), plus worst exp(a(M) − m2).

    Args:
        own: a(E), each neuron's pre-activation on its own hidden state.
        memory: a(M), every neuron's pre-activation on the hidden states in memory.
        margins: With m1 and m2.
        worst: Number of values in each of the two means.
        copies: Copies of the edit in the authors' batch, which is 8.
    """
    apart = torch.exp(memory[None] - own[:, None] + margins.apart)
    silent = torch.exp(memory - margins.silent)
    return mean_of_largest(apart, worst, copies) + mean_of_largest(silent, worst, copies * len(own))


def smoothed_nll(
    logits: Float[Tensor, "a v"], targets: Int[Tensor, " a"], smoothing: float
) -> Float[Tensor, " a"]:
    """Return the label-smoothed negative log-likelihood of tokens (fairseq's form).

    (1 − ε − ε')·nll + ε'·Σ −log p with ε' = ε/(v − 1).

    Args:
        logits: One row per token.
        targets: The tokens.
        smoothing: ε.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    each = smoothing / (logits.shape[-1] - 1)
    nll = -log_probs.gather(-1, targets[..., None]).squeeze(-1)
    return (1 - smoothing - each) * nll - each * log_probs.sum(-1)
