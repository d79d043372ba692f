"""Neighbourhoods of an edit: near facts in hidden space, hops in the graph, random controls.

GIE (arXiv 2403.07825) measures what an edit does to facts that are close to it in the model's
hidden space but not in the knowledge graph. Only its abstract and summaries were available: the
sets, the distances and the score are reconstructed from those. Nothing here imports torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

FactSet = Literal["near", "hop_1", "hop_2", "random"]
SETS: tuple[FactSet, ...] = get_args(FactSet)
#: Tie tolerance of similarities: above the rounding of a pass, below most true differences.
_TIE_TOLERANCE = 1e-5
#: Steps in the graph beyond which a fact counts as unrelated to an edit.
MAX_RELATED_DISTANCE = 2


@dataclass(frozen=True)
class NeighbourFact:
    """Neighbour of an edit: a fact with its graph distance, similarity and set.

    Args:
        fact: Index of the fact.
        distance: Steps in the knowledge graph; ``None`` if there is no path.
        similarity: Cosine similarity of the two representations.
        set: ``near``: close in hidden space, unrelated in the graph; ``hop_1``, ``hop_2``: by
            distance in the graph; ``random``: unrelated, of any similarity.
    """

    fact: int
    distance: int | None
    similarity: float
    set: FactSet


@dataclass(frozen=True)
class FactOutcome:
    """Teacher-forced outcome of a fact: negative log-likelihood and rank of its object.

    Args:
        nll: Mean negative log-probability per token of the preferred answer, in nats: the logarithm
            of its perplexity.
        rank: Worst vocabulary rank of its tokens; 1 if each is the argmax.
    """

    nll: float
    rank: int

    @property
    def right(self) -> bool:
        """Exact match: whether each token is the model's argmax."""
        return self.rank == 1


@dataclass(frozen=True)
class Ripple:
    """Ripple effect of one edit on one neighbouring fact.

    Args:
        edit_id: Id of the edit.
        place: The neighbouring fact.
        before: Outcome on the pristine model.
        after: Outcome on the current model.
    """

    edit_id: str
    place: NeighbourFact
    before: FactOutcome
    after: FactOutcome

    @property
    def change(self) -> float:
        """Rise of the log perplexity, in nats; above 0 is harm."""
        return self.after.nll - self.before.nll


def choose_neighbourhoods(
    distances: Sequence[int | None],
    similarities: Sequence[float],
    usable: Sequence[bool],
    size: int,
    draw: random.Random,
) -> list[NeighbourFact]:
    """Choose the neighbouring facts of one edit; no fact is in two sets.

    Args:
        distances: Graph distance of every fact from the edit.
        similarities: Similarity of every fact to the edit.
        usable: Which facts may be chosen: known to the model, and not edited themselves.
        size: Maximum number of facts in a set.
        draw: Random generator of the control sets.

    Returns:
        Sets in the order of :data:`SETS`; ``near`` begins with the closest fact. Similarities at
        most 1e-5 of the largest apart are ties, and the fact with the lower index comes first:
        facts with the same prompt have the same similarity up to rounding, which depends on the
        batch shape.
    """
    facts = [number for number, use in enumerate(usable) if use]
    far = [n for n in facts if (d := distances[n]) is None or d > MAX_RELATED_DISTANCE]
    near = _sort_by_similarity(far, similarities)[:size]
    rest = sorted(set(far) - set(near))
    pools: dict[FactSet, list[int]] = {
        "near": near,
        "hop_1": [n for n in facts if distances[n] == 1],
        "hop_2": [n for n in facts if distances[n] == MAX_RELATED_DISTANCE],
        "random": rest,
    }
    return [
        NeighbourFact(number, distances[number], similarities[number], name)
        for name, pool in pools.items()
        for number in (pool if len(pool) <= size else sorted(draw.sample(pool, size)))
    ]


def _sort_by_similarity(facts: Sequence[int], similarities: Sequence[float]) -> list[int]:
    """Sort facts by similarity, highest first; ties within the tolerance by index."""
    ranked = sorted(facts, key=lambda n: -similarities[n])
    apart = _TIE_TOLERANCE * max((abs(similarities[n]) for n in facts), default=0.0)
    tie, ties = 0, {}
    for before, number in zip([ranked[0], *ranked] if ranked else [], ranked, strict=False):
        tie += similarities[before] - similarities[number] > apart
        ties[number] = tie
    return sorted(ranked, key=lambda n: (ties[n], n))
