"""Knowledge-neuron attribution: integrated-gradient points, thresholds, shared neurons.

Axis names: ``l`` -- layers; ``f`` -- neurons of a layer; ``p`` -- prompts; ``m`` -- points;
``v`` -- vocabulary.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rule = Literal["left", "ends"]


def path_points(steps: int, rule: Rule) -> Float[Tensor, " m"]:
    """Return the integrated-gradient points: activation fractions where gradients are taken.

    Args:
        steps: Number of points m.
        rule: ``left``: k/m from 0 on, a Riemann sum as in the authors' code; ``ends``: m points
            from 0 to 1, both included, as in its ports to GPT.

    Raises:
        ValueError: If there are fewer than two points: at the first all neurons are zero, so a
            single point says nothing about the fact.

    Example:
        >>> path_points(4, "left")
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    if steps < 2:
        raise ValueError(
            f"integrated gradients need at least 2 steps, got {steps}: the first is taken where "
            "all neurons are zero; the paper has 20"
        )
    if rule == "ends":
        return torch.linspace(0, 1, steps)
    return torch.arange(steps) / steps


def above_share_of_largest(scores: Float[Tensor, "p l f"], share: float) -> Bool[Tensor, "p l f"]:
    """Threshold attributions: mark neurons above a share of each prompt's largest."""
    return scores > share * scores.amax((1, 2), keepdim=True)


def shared_neurons(
    marked: Bool[Tensor, "p l f"], share: float, fewest: int, most: int, rounds: int = 6
) -> Int[Tensor, "n 2"]:
    """Return the neurons that enough prompts have in common, as pairs (layer, neuron).

    The share of prompts moves by 0.05, at most ``rounds`` times, until between ``fewest`` and
    ``most`` neurons are left (knowledge neurons, arXiv 2104.08696, section 3.3). If in the end no
    neuron is common to enough prompts, those common to the most are returned; where no prompt has
    any, none.

    Args:
        marked: Marked neurons of each prompt.
        share: Share of the prompts that must have a neuron, at first.
        fewest: Minimum number of neurons.
        most: Maximum number of neurons.
        rounds: Maximum number of changes of the share.

    Example:
        >>> marked = torch.tensor([[[True, True, False]], [[True, False, False]]])
        >>> shared_neurons(marked, 0.7, 1, 5)
        tensor([[0, 0]])
    """
    counts = marked.sum(0)
    for _ in range(rounds):
        number = int((counts >= _min_prompts(share, len(marked))).sum())
        if fewest <= number <= most:
            break
        share += 0.05 if number > most else -0.05
    needed = max(1, min(_min_prompts(share, len(marked)), int(counts.max())))
    return (counts >= needed).nonzero()


def _min_prompts(share: float, prompts: int) -> float:
    """Return the number of prompts that must share a neuron: at least 1 for any share."""
    return max(1.0, min(share, 1.0) * prompts - 1e-9)


def probability_gradient(
    logits: Float[Tensor, "p v"], tokens: Int[Tensor, " p"], inputs: Float[Tensor, "p f"]
) -> Float[Tensor, "p f"]:
    """Return the gradient of each row's target token probability with respect to ``inputs``.

    It is the probability times the gradient of its logarithm, multiplied in double precision: a
    model that edits have damaged gives an answer a probability of 1e-40 and less, whose gradient
    single precision holds as subnormal numbers, with few digits and at several times the cost, or
    as zero.

    Args:
        logits: Logits with their graph, one row a prediction.
        tokens: Target token of each row.
        inputs: Leaf or intermediate tensor of the graph, row r of which reaches row r of the logits
            alone.

    Returns:
        Gradients, float64.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = wide.detach().log_softmax(-1)
    at = tokens[:, None]
    # The gradient of log P with respect to the logits, by hand: other tokens' probabilities that
    # are subnormal numbers would slow every product down, and change nothing beside one of 1.
    by_logit = -log_probabilities.exp()
    by_logit.masked_fill_(by_logit.abs() < torch.finfo(wide.dtype).tiny, 0)
    by_logit.scatter_add_(1, at, torch.ones_like(log_probabilities[:, :1]))
    (gradient,) = torch.autograd.grad(wide, inputs, by_logit)
    return gradient.double() * log_probabilities.gather(1, at).double().exp()
