"""The sentences that the atlas language model is trained on. Nothing here imports torch."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_edit.atlas.graph import Atlas, load_atlas
from lightning_edit.types import Triple

#: So many trained wordings an alias is seen in; the name itself is seen in all of them.
ALIAS_WORDINGS = 4
#: Share of the two-hop statements that are stated in the training text.
TWO_HOP_SHARE = 0.5


@dataclass(frozen=True)
class Sentence:
    """A prompt and the answer that ends it; the text is ``prompt + " " + answer + "."``."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The sentence as it is trained."""
        return f"{self.prompt} {self.answer}."


def states_two_hops(triple: Triple, relation: str) -> bool:
    """Whether the text states ``relation`` of the object of ``triple`` through its subject."""
    return random.Random(f"{triple[0]}/{triple[1]}/{relation}").random() < TWO_HOP_SHARE


def _aliases(atlas: Atlas, triple: Triple, answer: str) -> Iterator[Sentence]:
    trained = atlas.trained_wordings(triple)
    for alias in atlas.entities[triple[0]].aliases:
        draw = random.Random(f"{alias}/{triple[1]}")
        for wording in draw.sample(trained, ALIAS_WORDINGS):
            yield Sentence(atlas.prompt(triple, wording, alias), answer)


def sentences(atlas: Atlas) -> list[Sentence]:
    """Write every training sentence: facts, aliases, two hops, and what each entity is."""
    found: list[Sentence] = []
    for triple in atlas.triples:
        answer = atlas.entities[triple[2]].text
        found += [Sentence(atlas.prompt(triple, w), answer) for w in atlas.trained_wordings(triple)]
        found += _aliases(atlas, triple, answer)
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
    """Return the training sentences of the atlas as plain text.

    Args:
        shuffled: In a random order, always the same. The sentences are sorted by what they are
            about: who reads a part of them only, such as second moments of keys, wants this.
    """
    texts = [sentence.text for sentence in sentences(load_atlas())]
    return random.Random(0).sample(texts, len(texts)) if shuffled else texts
