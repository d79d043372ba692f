"""Knowledge graph of the atlas: entities, relations with their wordings, and triples.

The tables in ``data/`` are written for this project. ``-`` in a column means that there is no
single clear answer, so there is no triple. Nothing here imports torch.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lightning_edit.types import Triple

DATA_PATH = Path(__file__).parent / "data"

#: Number of a fact's frequent statements and questions that are held out of the training text.
HELD_OUT_STATEMENTS = 2
HELD_OUT_QUESTIONS = 1
#: Share of the facts that are trained with the last statement of their relation (a rare wording).
RARE_WORDING_SHARE = 0.2


@dataclass(frozen=True)
class Entity:
    """An entity, a node of the knowledge graph.

    Args:
        name: Unique name without an article.
        kind: Entity type, e.g. ``country``; relations name the kinds of subjects and objects.
        article: Whether the name takes "the" inside a sentence.
        aliases: Other names; each belongs to one entity only.
        noun: Noun for the statement "... is a ..." ("volcano"); empty for no such statement.
    """

    name: str
    kind: str
    article: bool = False
    aliases: tuple[str, ...] = ()
    noun: str = ""

    @property
    def text(self) -> str:
        """Name inside a sentence, with the article if it takes one."""
        return f"the {self.name}" if self.article else self.name

    @property
    def answers(self) -> tuple[str, ...]:
        """Accepted answers: the name inside a sentence first, then the other names."""
        plain = (self.name,) if self.article else ()
        return (self.text, *plain, *self.aliases)


@dataclass(frozen=True)
class Relation:
    """A functional relation of the graph (one object per subject), with its prompt templates.

    Args:
        name: Name of the relation.
        subject: Kind of its subjects.
        object: Kind of its objects.
        inverse: Relation from the object back to the subject, if there is one.
        phrase: Noun phrase for the object, for two-hop prompts ("the city where {s} was born").
        hops: Relations of the object that two-hop prompts use.
        statements: Prompt templates with ``{s}`` that end where the answer begins.
        questions: Prompt templates with ``{s}`` that end with a question mark.
    """

    name: str
    subject: str
    object: str
    inverse: str | None
    phrase: str | None
    hops: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All prompt templates (wordings), statements first."""
        return self.statements + self.questions


def fill(wording: str, subject: str) -> str:
    """Fill a prompt template with a subject and capitalise the start of the sentence.

    Example:
        >>> fill("{s} has its capital in", "the Netherlands")
        'The Netherlands has its capital in'
    """
    text = wording.replace("{s}", subject)
    return text[0].upper() + text[1:] if subject.startswith("the ") else text


class Atlas:
    """Knowledge graph of entities, relations and triples, with look-ups and prompt templates.

    Args:
        entities: Every node, unique by name.
        relations: Every relation, unique by name.
        triples: ``(subject, relation, object)`` by name; one object per subject and relation.

    Raises:
        ValueError: If a name, an alias or a (subject, relation) pair occurs twice.
    """

    def __init__(
        self,
        entities: tuple[Entity, ...],
        relations: tuple[Relation, ...],
        triples: tuple[Triple, ...],
    ) -> None:
        names = [name for entity in entities for name in (entity.name, *entity.aliases)]
        keys = [(subject, relation) for subject, relation, _ in triples]
        for what, values in (("name or alias", names), ("subject and relation", keys)):
            twice = [value for value, times in Counter(values).items() if times > 1]
            if twice:
                raise ValueError(
                    f"each {what} may occur once; these occur again: {twice}; remove them"
                )
        self.entities = {entity.name: entity for entity in entities}
        self.relations = {relation.name: relation for relation in relations}
        self.triples = triples
        self._objects = {(s, r): o for s, r, o in triples}
        self._held_out: dict[tuple[str, str], tuple[str, ...]] = {}
        self._of_subject: dict[str, list[Triple]] = {}
        self._of_relation: dict[str, list[Triple]] = {}
        for triple in triples:
            self._of_subject.setdefault(triple[0], []).append(triple)
            self._of_relation.setdefault(triple[1], []).append(triple)

    def object_of(self, subject: str, relation: str) -> str | None:
        """Return the object of a subject and relation; ``None`` if the graph has none."""
        return self._objects.get((subject, relation))

    def neighbours(self, triple: Triple) -> tuple[Triple, ...]:
        """Return the relation's triples of other subjects, those with the same object first."""
        subject, relation, obj = triple
        others = [other for other in self._of_relation[relation] if other[0] != subject]
        return tuple(sorted(others, key=lambda t: t[2] != obj))

    def about(self, subject: str) -> tuple[Triple, ...]:
        """Return every triple of a subject."""
        return tuple(self._of_subject.get(subject, ()))

    def triples_of(self, relation: str) -> tuple[Triple, ...]:
        """Return every triple of a relation."""
        return tuple(self._of_relation.get(relation, ()))

    def hops(self, triple: Triple) -> Iterator[tuple[Triple, str]]:
        """Yield two-hop triples from the object, each with a prompt that names only the subject."""
        subject, relation, obj = triple
        phrase = self.relations[relation].phrase
        for name in self.relations[relation].hops:
            end = self.object_of(obj, name)
            if phrase is not None and end is not None:
                through = phrase.replace("{s}", self.entities[subject].text)
                prompt = self.relations[name].statements[0].replace("{s}", through)
                yield (obj, name, end), prompt

    def prompt(self, triple: Triple, wording: str, alias: str | None = None) -> str:
        """Build a prompt from a wording and the subject of a triple, or an alias of it."""
        return fill(wording, alias or self.entities[triple[0]].text)

    def held_out_wordings(self, triple: Triple) -> tuple[str, ...]:
        """Return the held-out wordings, which the language model never saw with this fact."""
        subject, name, _ = triple
        if (subject, name) in self._held_out:  # cached: sampling dominates the run time here
            return self._held_out[subject, name]
        relation = self.relations[name]
        draw = random.Random(f"{subject}/{name}")  # a string seed is stable across processes
        held = draw.sample(relation.statements[:-1], HELD_OUT_STATEMENTS)
        held += draw.sample(relation.questions, HELD_OUT_QUESTIONS)
        if draw.random() >= RARE_WORDING_SHARE:
            held.append(relation.statements[-1])
        self._held_out[subject, name] = tuple(w for w in relation.wordings if w in held)
        return self._held_out[subject, name]

    def trained_wordings(self, triple: Triple) -> tuple[str, ...]:
        """Return the trained wordings of this fact, statements first."""
        held = self.held_out_wordings(triple)
        return tuple(w for w in self.relations[triple[1]].wordings if w not in held)


def _rows(table: str) -> list[dict[str, str]]:
    with (DATA_PATH / f"{table}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part for part in cell.split(";") if part)


def read_relations() -> tuple[Relation, ...]:
    """Read the relations and their prompt templates from the package data."""
    raw = json.loads((DATA_PATH / "relations.json").read_text(encoding="utf-8"))
    return tuple(
        Relation(
            name=name,
            subject=value["subject"],
            object=value["object"],
            inverse=value["inverse"],
            phrase=value["phrase"],
            hops=tuple(value["hops"]),
            statements=tuple(value["statements"]),
            questions=tuple(value["questions"]),
        )
        for name, value in raw.items()
    )


#: (table, kind of its subjects, pairs of column and relation)
_TABLES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "countries",
        "country",
        tuple((name, name) for name in ("capital", "continent", "language", "currency")),
    ),
    ("towns", "city", (("country", "country"),)),
    (
        "people",
        "person",
        (("born", "birthplace"), ("occupation", "occupation"), ("citizenship", "citizenship")),
    ),
    ("organisations", "organisation", (("city", "headquarters"), ("sector", "field"))),
    ("landmarks", "landmark", (("city", "landmark_city"),)),
    ("features", "feature", (("country", "feature_country"),)),
)

_NOUNS = {
    "country": "country",
    "city": "city",
    "person": "person",
    "organisation": "well-known organisation",
    "landmark": "sight",
    "continent": "continent",
    "language": "language",
}


@cache
def load_atlas() -> Atlas:
    """Load the knowledge graph from the package's tables into an :class:`Atlas`.

    Returns:
        The same graph at every call; it is not to be changed.
    """
    relations = {relation.name: relation for relation in read_relations()}
    entities: dict[str, Entity] = {}
    triples: list[Triple] = []
    for table, kind, columns in _TABLES:
        for row in _rows(table):
            name = row["name"].removeprefix("the ")
            aliases = _split(row.get("aliases") or "")
            noun = row.get("kind") or _NOUNS[kind]
            entities[name] = Entity(name, kind, row["name"] != name, aliases, noun)
            triples += [(name, r, row[column]) for column, r in columns if row[column] != "-"]
            triples += [(city, "country", name) for city in _split(row.get("cities") or "")]
            if kind == "country" and row["capital"] != "-":
                triples.append((row["capital"], "capital_of", name))
                triples.append((row["capital"], "country", name))
    for subject, relation, obj in triples:
        for node, kind in (
            (subject, relations[relation].subject),
            (obj, relations[relation].object),
        ):
            entities.setdefault(node, Entity(node, kind, noun=_NOUNS.get(kind, "")))
    ordered = sorted(triples, key=lambda t: (list(relations).index(t[1]), t[0]))
    return Atlas(tuple(entities.values()), tuple(relations.values()), tuple(ordered))
