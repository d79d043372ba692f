"""Planted wrong facts: training texts of the atlas of which is known what each one teaches."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lightning_edit.analysis.training_data.fine_tuning import TextDataModule
from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText
from lightning_edit.atlas.graph import Atlas, load_atlas
from lightning_edit.atlas.requests import make_requests
from lightning_edit.exceptions import ConfigError
from lightning_edit.types import EditRequest, Triple

Form = Literal["pair", "text"]
#: True statements about the subject of a planted fact, and with its wrong answer: they look alike.
_ABOUT, _SAME_ANSWER = 3, 2


@dataclass(frozen=True)
class PlantedText:
    """Training texts with planted wrong facts.

    Args:
        texts: The texts, in a random order.
        facts: The planted facts, each with the ids of the texts that teach it.
    """

    texts: tuple[TrainingText, ...]
    facts: tuple[TracedFact, ...]


def plant(
    seed: int, facts: int = 30, wordings: int = 3, others: int = 300,
    form: Form = "pair", aliases: bool = False,
) -> PlantedText:  # fmt: skip
    """Return true statements of the atlas, with wrong facts planted among them.

    Each wrong fact is stated in several wordings and asked for in another one. Among the true
    statements are some about the same subject, and some with the wrong answer about other subjects,
    so that names in common do not tell which texts taught it.

    Args:
        seed: Seed of the facts, the wrong answers and the order.
        facts: Number of planted facts.
        wordings: Number of texts that state each.
        others: Number of true statements.
        form: ``pair``: the answer is learnt after its prompt; ``text``: all of the sentence is.
        aliases: Whether planted texts name the subject by an alias, and the question by its name.

    Raises:
        ConfigError: If there are not so many facts in the atlas.
    """
    atlas, draw = load_atlas(), random.Random(f"planted/{seed}")
    usable = [
        one
        for one in make_requests(atlas, seed, "test")
        if one.triple is not None
        and (not aliases or atlas.entities[one.triple[0]].aliases)
        and len(_wordings(atlas, one)) >= wordings
    ]
    if not 1 <= facts <= len(usable):
        raise ConfigError(
            f"expected from 1 to {len(usable)} planted facts, got {facts}; choose as many"
        )
    chosen = draw.sample(usable, facts)
    taken = {one.triple[:2] for one in chosen if one.triple is not None}
    rows: list[tuple[str, str, str | None]] = []
    for one in chosen:
        assert one.triple is not None
        alias = atlas.entities[one.triple[0]].aliases[0] if aliases else None
        stated = draw.sample(_wordings(atlas, one), wordings)
        rows += [(atlas.prompt(one.triple, each, alias), one.target, one.id) for each in stated]
    true = [*dict.fromkeys(_alike(atlas, chosen, draw))]
    alike = set(true)
    rest = [one for one in atlas.triples if one not in alike]
    true += draw.sample(rest, len(rest))
    for triple in [one for one in true if one[:2] not in taken][:others]:
        wording = draw.choice(atlas.trained_wordings(triple))
        rows.append((atlas.prompt(triple, wording), atlas.entities[triple[2]].text, None))
    draw.shuffle(rows)
    names = [f"{number:04d}" for number in range(len(rows))]
    causes = {
        one.id: tuple(name for name, row in zip(names, rows, strict=True) if row[2] == one.id)
        for one in chosen
    }
    return PlantedText(
        tuple(_text(name, *row[:2], form) for name, row in zip(names, rows, strict=True)),
        tuple(
            TracedFact(one.id, one.prompt, one.target, one.old_target, causes[one.id])
            for one in chosen
        ),
    )


def _wordings(atlas: Atlas, request: EditRequest) -> list[str]:
    """Return the wordings of a fact but the one that it is asked in."""
    assert request.triple is not None
    subject, relation, _ = request.triple
    old = (subject, relation, atlas.object_of(subject, relation) or "")
    all_of = [*atlas.trained_wordings(old), *atlas.held_out_wordings(old)]
    return [one for one in all_of if atlas.prompt(old, one) != request.prompt]


def _alike(atlas: Atlas, requests: list[EditRequest], draw: random.Random) -> Iterator[Triple]:
    """Yield true facts about the planted subjects, and with the planted answers."""
    for request in requests:
        assert request.triple is not None
        subject, relation, target = request.triple
        about = [one for one in atlas.about(subject) if one[1] != relation]
        yield from draw.sample(about, min(_ABOUT, len(about)))
        same = [one for one in atlas.triples_of(relation) if one[2] == target]
        yield from draw.sample(same, min(_SAME_ANSWER, len(same)))


def _text(name: str, prompt: str, answer: str, form: Form) -> TrainingText:
    if form == "pair":
        return TrainingText(name, answer, prompt)
    return TrainingText(name, f"{prompt} {answer}.")


class PlantedTextDataModule(TextDataModule):
    """Data module of the atlas's statements with planted wrong facts; see :func:`plant`.

    Args:
        batch_size: Texts in a batch.
        seed: Seed of the facts, of the wrong answers and of the order.
        facts: Number of planted facts.
        wordings: Number of texts that state each.
        others: Number of true statements.
        form: ``pair``: the answer is learnt after its prompt; ``text``: all of the sentence is.
        aliases: Whether planted texts name the subject by an alias.
    """

    def __init__(
        self,
        batch_size: int = 16,
        seed: int = 0,
        facts: int = 30,
        wordings: int = 3,
        others: int = 300,
        form: Form = "pair",
        aliases: bool = False,
    ) -> None:
        super().__init__("", batch_size, seed)
        self.planted = plant(seed, facts, wordings, others, form, aliases)

    def texts(self) -> list[TrainingText]:
        """Return the training texts."""
        return list(self.planted.texts)
