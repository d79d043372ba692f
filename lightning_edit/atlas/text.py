"""Training text of the atlas language model, as sentences. Nothing here imports torch."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from lightning_edit.atlas.graph import Atlas, load_atlas
from lightning_edit.types import Triple

#: Number of trained wordings per alias; the name itself appears in all trained wordings.
ALIAS_WORDINGS = 4
#: Share of the two-hop statements that are in the training text.
TWO_HOP_SHARE = 0.5


@dataclass(frozen=True)
class Sentence:
    """A training sentence: prompt and answer, as text ``prompt + " " + answer + "."``."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """Text of the whole sentence, as in the training text."""
        return f"{self.prompt} {self.answer}."


def states_two_hops(triple: Triple, relation: str) -> bool:
    """Return whether the training text has the two-hop statement of ``triple`` and ``relation``."""
    return random.Random(f"{triple[0]}/{triple[1]}/{relation}").random() < TWO_HOP_SHARE


def _alias_sentences(atlas: Atlas, triple: Triple, answer: str) -> Iterator[Sentence]:
    trained = atlas.trained_wordings(triple)
    for alias in atlas.entities[triple[0]].aliases:
        draw = random.Random(f"{alias}/{triple[1]}")
        for wording in draw.sample(trained, ALIAS_WORDINGS):
            yield Sentence(atlas.prompt(triple, wording, alias), answer)


def sentences(atlas: Atlas) -> list[Sentence]:
    """Generate every training sentence: facts, aliases, two-hop statements and entity nouns."""
    found: list[Sentence] = []
    for triple in atlas.triples:
        answer = atlas.entities[triple[2]].text
        found += [Sentence(atlas.prompt(triple, w), answer) for w in atlas.trained_wordings(triple)]
        found += _alias_sentences(atlas, triple, answer)
        for (_, relation, end), prompt in atlas.hops(triple):
            if states_two_hops(triple, relation):
                found.append(Sentence(prompt, atlas.entities[end].text))
    for entity in atlas.entities.values():
        start = entity.text[0].upper() + entity.text[1:]
        if entity.noun:
            found.append(Sentence(f"{start} is a", entity.noun))
        found += [Sentence(f"{alias} is another name for", entity.text) for alias in entity.aliases]
    return found


def corpus(shuffled: bool = False) -> list[str]:
    """Return the training corpus of the atlas as a list of sentences.

    Args:
        shuffled: Whether to shuffle, always into the same order. The sentences are sorted by topic,
            so a reader of only a part (such as second moments of keys) should shuffle.
    """
    return list(_texts(shuffled))


@cache
def _texts(shuffled: bool) -> tuple[str, ...]:
    if shuffled:
        texts = _texts(False)
        return tuple(random.Random(0).sample(texts, len(texts)))
    return tuple(sentence.text for sentence in sentences(load_atlas()))
