r"""Scope of stored edits: similarity of a question to each edit, routing, balanced loss (SERAC).

The formulas of Mitchell et al., *Memory-Based Model Editing at Scale*, ICML 2022, arXiv 2206.06520,
sections 3.1 and 3.3, with the choices of the authors' code (eric-mitchell/serac, ``algs/rep.py``
and ``losses.py``). Axis names: ``q`` -- questions; ``m`` -- edits in memory; ``d`` -- width of the
encoder; ``n`` -- pairs of a question and an edit; ``v`` -- vocabulary.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: A score must be above this, strictly, for a question to be in scope of an edit.
THRESHOLD = 0.5
#: Stands for a probability of exactly zero, as in the authors' code also in float64.
EPSILON = torch.finfo(torch.float32).eps


class Route(NamedTuple):
    """Where each question goes.

    Args:
        score: Score of the most similar edit, 0 to 1.
        edit: Its number; of equal ones the first.
        inside: Whether the score is above :data:`THRESHOLD`.
    """

    score: Float[Tensor, " q"]
    edit: Int[Tensor, " q"]
    inside: Bool[Tensor, " q"]


def embedding_log_scores(
    questions: Float[Tensor, "q d"],
    edits: Float[Tensor, "m d"],
    heads: int = 1,
    scale: float = 1.0,
    cosine: bool = False,
    bounded: bool = False,
    squared: bool = True,
) -> Float[Tensor, "q m"]:
    r"""Return log scope scores of encoder vectors, :math:`-\kappa\,\lVert q - e\rVert^2`.

    Args:
        questions: Vectors of questions.
        edits: Vectors of edits.
        heads: Vectors are cut into this many slices; the smallest distance of a slice counts.
        scale: :math:`\kappa`.
        cosine: Use :math:`1 - \cos(q, e)` as the distance.
        bounded: Put the vectors through tanh first.
        squared: Use the squared Euclidean distance; ``False``: the distance itself.

    Raises:
        ValueError: If the width is no multiple of ``heads``.

    Example:
        >>> question, edits = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.5], [1.0, 1.0]])
        >>> embedding_log_scores(question, edits).tolist()
        [[-0.25, -2.0]]
    """
    width = questions.shape[-1]
    if heads < 1 or width % heads:
        raise ValueError(
            f"vectors of width {width} cannot be cut into {heads} equal heads; give a number of "
            "heads that divides the encoder's width"
        )
    if bounded:
        questions, edits = questions.tanh(), edits.tanh()
    first = questions.reshape(-1, 1, heads, width // heads)
    second = edits.reshape(1, -1, heads, width // heads)
    if cosine:
        distances = (1 - torch.cosine_similarity(first, second, dim=-1)).clamp_min(0)
    else:
        difference = first - second
        distances = difference.square().sum(-1) if squared else difference.norm(dim=-1)
    closest: Tensor = distances.amin(-1)
    return -scale * closest


def pair_log_scores(logits: Float[Tensor, "q m 2"]) -> Float[Tensor, "q m"]:
    """Return log scope scores of a classifier that reads edit and question together.

    Args:
        logits: Its two outputs for each pair; the first one says "in scope".
    """
    return logits.log_softmax(-1)[..., 0]


def route(log_scores: Float[Tensor, "q m"]) -> Route:
    """Choose the most similar edit of each question, and whether the question is in its scope.

    Args:
        log_scores: Log scores against at least one edit.

    Example:
        >>> route(torch.tensor([[0.2, 0.9], [0.5, 0.1]]).log()).inside.tolist()
        [True, False]
    """
    best, edit = log_scores.max(-1)
    score = best.exp()
    return Route(score, edit, score > THRESHOLD)


def balanced_bce(log_scores: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return the balanced binary cross-entropy of scope scores, in nats.

    :math:`\mathrm{mean}_{\text{in}}(-\log s) + \mathrm{mean}_{\text{out}}(-\log(1-s))`: both sides
    weigh the same however many pairs they have; a side without pairs counts 0.

    Args:
        log_scores: Log scores, at most 0.
        labels: 1 for pairs in scope, 0 for the others.
    """
    inside = labels > 0.5
    zero = log_scores.sum() * 0
    near = -log_scores[inside].mean() if bool(inside.any()) else zero
    outside = 1 - log_scores[~inside].exp()
    # A score of exactly 1 outside the scope would be infinitely wrong; its gradient stays.
    outside = outside + torch.where(outside == 0, EPSILON, 0.0).to(outside)
    return near + (-outside.log().mean() if outside.numel() else zero)


def mixed_log_probabilities(
    base: Float[Tensor, "*n v"], other: Float[Tensor, "*n v"], weight: Float[Tensor, "*n"]
) -> Float[Tensor, "*n v"]:
    r"""Mix the predictions of two models of one vocabulary, :math:`\log((1-\beta)p_f+\beta p_h)`.

    Args:
        base: Logits of the base model.
        other: Logits of the counterfactual model.
        weight: :math:`\beta`, the scope score of each prediction.

    Returns:
        Log-probabilities, which serve as logits.
    """
    share = weight[..., None]
    mixture = (1 - share) * base.softmax(-1) + share * other.softmax(-1)
    return (mixture + EPSILON).log()
