"""Which facts are looked at around an edit. Nothing here imports torch.

GIE (arXiv 2403.07825) asks what an edit does to facts that lie close to it in the model's hidden
space though not in the knowledge graph. Only its abstract and summaries could be had: the sets, the
distances and the score are reconstructed from those.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

FactSet = Literal["near", "hop_1", "hop_2", "random"]
SETS: tuple[FactSet, ...] = get_args(FactSet)
#: Similarities of which the rounding of a pass is smaller than this, and most differences larger.
_EQUAL = 1e-5
#: Beyond so many steps in the graph a fact counts as unrelated to an edit.
RELATED = 2


@dataclass(frozen=True)
class Placed:
    """A fact beside an edit.

    Args:
        fact: Number of the fact.
        distance: Steps in the knowledge graph; ``None`` where no path leads.
        similarity: Cosine of the two representations.
        set: ``near``: close in hidden space, unrelated in the graph; ``hop_1``, ``hop_2``: by
            distance in the graph; ``random``: unrelated, of any closeness.
    """

    fact: int
    distance: int | None
    similarity: float
    set: FactSet


@dataclass(frozen=True)
class FactOutcome:
    """How a model takes the object of a fact, teacher forced.

    Args:
        nll: Mean negative log probability of a token of the preferred answer, in nats: the
            logarithm of its perplexity.
        rank: The worst place of its tokens in the vocabulary; 1 if each is the first choice.
    """

    nll: float
    rank: int

    @property
    def right(self) -> bool:
        """Whether each token is the model's first choice."""
        return self.rank == 1


@dataclass(frozen=True)
class Ripple:
    """What became of one fact beside one edit.

    Args:
        edit_id: The edit.
        place: The fact.
        before: The pristine model's outcome.
        after: The model's outcome now.
    """

    edit_id: str
    place: Placed
    before: FactOutcome
    after: FactOutcome

    @property
    def change(self) -> float:
        """Rise of the log perplexity, in nats; above 0 is harm."""
        return self.after.nll - self.before.nll


def choose(
    distances: Sequence[int | None],
    similarities: Sequence[float],
    usable: Sequence[bool],
    size: int,
    draw: random.Random,
) -> list[Placed]:
    """Choose the facts that are looked at around one edit; no fact is in two sets.

    Args:
        distances: Of every fact from the edit.
        similarities: Of every fact to the edit.
        usable: Which facts may be chosen: known to the model, and not edited themselves.
        size: Most facts of a set.
        draw: Draws the control sets.

    Returns:
        Sets in the order of :data:`SETS`; ``near`` begins with the closest fact. Similarities no
        more than 1e-5 apart count as a tie, where the fact with the lower number comes first: facts
        with one prompt have one similarity, of which passes of other sizes differ by rounding.
    """
    facts = [number for number, use in enumerate(usable) if use]
    far = [n for n in facts if (d := distances[n]) is None or d > RELATED]
    near = _closest_first(far, similarities)[:size]
    rest = sorted(set(far) - set(near))
    pools: dict[FactSet, list[int]] = {
        "near": near,
        "hop_1": [n for n in facts if distances[n] == 1],
        "hop_2": [n for n in facts if distances[n] == RELATED],
        "random": rest,
    }
    return [
        Placed(number, distances[number], similarities[number], name)
        for name, pool in pools.items()
        for number in (pool if len(pool) <= size else sorted(draw.sample(pool, size)))
    ]


def _closest_first(facts: Sequence[int], similarities: Sequence[float]) -> list[int]:
    """Sort facts by similarity; those that are as good as equal by number."""
    ranked = sorted(facts, key=lambda n: -similarities[n])
    tie, ties = 0, {}
    for before, number in zip([ranked[0], *ranked] if ranked else [], ranked, strict=False):
        tie += similarities[before] - similarities[number] > _EQUAL
        ties[number] = tie
    return sorted(ranked, key=lambda n: (ties[n], n))
