"""Demonstrations of in-context editing (IKE): copy, update and retain, from a corpus of edits."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.editors.prompting.facts import Fact
from lightning_edit.exceptions import DataError
from lightning_edit.inference.retrieval import MakeIndex, TextIndex
from lightning_edit.models.prompt_format import render_plain
from lightning_edit.types import EditRequest

#: Shares of copy, update and retain among the demonstrations: 1 : 3 : 4.
_RATIO = (1, 3, 4)
#: Locality probes that are no facts near the edit.
_UNRELATED = ("other_task", "distracting_neighbor")


@dataclass(frozen=True)
class Record:
    """An edit of the corpus, with what it changes and what it leaves alone.

    Args:
        prompt: Its prompt.
        subject: Its subject; empty if not given.
        fact: Its new fact as a sentence.
        updates: Other wordings with the new answer.
        retained: Neighbouring prompts with their true answers.
    """

    prompt: str
    subject: str
    fact: str
    updates: tuple[str, ...]
    retained: tuple[str, ...]

    @classmethod
    def of(cls, request: EditRequest) -> "Record":
        """Return the record of an edit request.

        Args:
            request: The request; its rephrasings and locality probes are used.
        """
        fact, between = Fact.of(request), request.separator
        near = [
            one for one in request.probes if one.aspect == "locality" and one.kind not in _UNRELATED
        ]
        near = [one for one in near if one.kind == "neighborhood"] or near
        return cls(
            fact.prompt,
            request.subject or "",
            fact.sentence,
            tuple(_joined(text, request.target, between) for text in request.rephrases),
            tuple(_joined(one.prompt, one.answers[0], between) for one in near),
        )

    @property
    def is_whole(self) -> bool:
        """Whether it can be a demonstration of every type."""
        return bool(self.updates and self.retained)

    @property
    def copied(self) -> str:
        """The demonstration that copies the new fact."""
        return demonstration(self.fact, self.fact)

    def to_row(self) -> dict[str, Any]:
        """Serialise the record, for a line of a JSON Lines file."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Record":
        """Restore a record from :meth:`to_row`."""
        values = dict(row)
        for name in ("updates", "retained"):
            values[name] = tuple(values[name])
        return cls(**values)


def _joined(prompt: str, answer: str, separator: str | None) -> str:
    return render_plain(prompt, answer, separator).text.strip()


def demonstration(fact: str, statement: str) -> str:
    """Return one demonstration: a new fact, and what is said once it holds.

    Args:
        fact: The new fact.
        statement: A prompt with its answer.
    """
    return f"New Fact: {fact}\nPrompt: {statement}\n\n"


def records_of(requests: Iterable[EditRequest], source: str) -> tuple[list[Record], int]:
    """Return the records that can be demonstrations of every type, and the number of others.

    Args:
        requests: The edits of the corpus.
        source: Where they are from, for the error message.

    Raises:
        DataError: If there is none.
    """
    every = [Record.of(request) for request in requests]
    whole = [record for record in every if record.is_whole]
    if not whole:
        raise DataError(
            f"{source}: none of its {len(every)} records has both a rephrasing and a locality "
            "probe, of which demonstrations are made; give COUNTERFACT, zsRE or own facts with "
            "`rephrases` and `probes`"
        )
    return whole, len(every) - len(whole)


def type_counts(k: int) -> tuple[int, int, int]:
    """Return how many of ``k`` demonstrations copy, update and retain, in the ratio 1 : 3 : 4.

    Args:
        k: Number of demonstrations.

    Example:
        >>> type_counts(32), type_counts(3)
        ((4, 12, 16), (0, 1, 2))
    """
    copies = k * _RATIO[0] // sum(_RATIO)
    updates = k * _RATIO[1] // sum(_RATIO)
    return copies, updates, k - copies - updates


class Corpus:
    """Corpus of demonstrations, searched by a new fact.

    Args:
        records: Its records.
        make_index: Makes its index.
    """

    def __init__(self, records: Sequence[Record], make_index: MakeIndex) -> None:
        self._records = records
        self._make_index = make_index
        self._indexes: dict[str, tuple[TextIndex, list[str], list[int]]] = {}

    def by_paper(self, fact: Fact, k: int, seed: int) -> list[str]:
        """Return the paper's demonstrations, the least similar one first.

        All statements of all records are searched; the records of the hits, each and each subject
        once, get the types copy, update and retain in a shuffled order, and a statement by chance.

        Args:
            fact: The new fact.
            k: Number of demonstrations at most.
            seed: Seed of shuffling and choosing, together with the fact.
        """
        index, _, owners = self._searchable("all")
        query = f"New Fact: {fact.sentence}\nPrompt: {fact.prompt}"
        chosen: dict[str, Record] = {}
        for hit in index.nearest(query, len(owners)):
            record = self._records[owners[hit.place]]
            if record.prompt != fact.prompt:
                chosen.setdefault(record.subject or record.prompt, record)
            if len(chosen) == k:
                break
        draw = random.Random(f"{seed}/{fact.sentence}")
        copies, updates, retained = type_counts(k)
        types = ["copy"] * copies + ["update"] * updates + ["retain"] * retained
        draw.shuffle(types)
        found = []
        for kind, record in zip(types, chosen.values(), strict=False):
            said = {"copy": (record.fact,), "update": record.updates, "retain": record.retained}
            found.append(demonstration(record.fact, draw.choice(said[kind])))
        return found[::-1]

    def by_similarity(self, fact: Fact, k: int) -> list[str]:
        """Return EasyEdit's demonstrations: the nearest ones of any type, the nearest one first.

        Args:
            fact: The new fact.
            k: Number of demonstrations at most.
        """
        index, texts, _ = self._searchable("first")
        query = f"New Fact: {fact.sentence}\nPrompt: {fact.prompt}\n\n"
        return [texts[hit.place] for hit in index.nearest(query, k)]

    def _searchable(self, which: str) -> tuple[TextIndex, list[str], list[int]]:
        """Return the index of all statements of each record or its first of each type, once."""
        if which not in self._indexes:
            texts, owners = [], []
            for owner, one in enumerate(self._records):
                updates, retained = one.updates, one.retained
                if which == "first":
                    updates, retained = updates[:1], retained[:1]
                said = [demonstration(one.fact, text) for text in (one.fact, *updates, *retained)]
                texts += said
                owners += [owner] * len(said)
            self._indexes[which] = self._make_index(texts), texts, owners
        return self._indexes[which]


def read_requests_of(path: str) -> list[EditRequest]:
    """Read the edits of a corpus from a data file of any known form.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read.
    """
    if not Path(path).is_file():
        raise DataError(
            f"there is no file of demonstrations at {path}; give `demonstrations` a data file "
            "(COUNTERFACT, zsRE, own facts), or take them from the training split of a data module"
        )
    return read_requests(path).requests
