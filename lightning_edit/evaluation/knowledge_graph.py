"""Knowledge graph of facts with prompts, and graph distances from an edit.

Nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from lightning_edit.datamodules.formats.files import read_values
from lightning_edit.exceptions import DataError
from lightning_edit.functional.text import normalise
from lightning_edit.storage.record import Record, describe
from lightning_edit.types import EditRequest, Triple
from lightning_edit.types.facts import Fact

#: Kinds of probes that state a fact other than the edit of their request.
_FACT_KINDS = frozenset(
    {"neighborhood", "other_attribution", "relation_specificity", "premise", "known_fact"}
)
_FIELDS = ("subject", "relation", "object", "prompt", "answers", "subject_text")


class FactGraph:
    """Knowledge graph: entities are nodes, each fact is an edge between subject and object.

    Names are compared after :func:`~lightning_edit.functional.text.normalise`.

    Args:
        facts: The facts; of those with one subject, relation and object the first is used.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        named = {(_node(f.subject), f.relation, _node(f.object)): f for f in reversed(list(facts))}
        self.facts = tuple(reversed(named.values()))
        self._edges = [(_node(fact.subject), _node(fact.object)) for fact in self.facts]
        self.graph = nx.Graph(self._edges)
        self._objects: dict[tuple[str, str], set[str]] = {}
        for fact, (subject, target) in zip(self.facts, self._edges, strict=True):
            self._objects.setdefault((subject, fact.relation), set()).add(target)

    def distances(self, request: EditRequest) -> list[int | None]:
        """Compute the graph distance of every fact from an edit, by breadth-first search.

        A fact at distance 1 shares an entity with the edit: its subject, its new or its old
        object. One at distance 2 shares an entity with one of those, and so on. ``None``: no path.

        Args:
            request: The edit.
        """
        own = [name for name in sorted(self._entities(request)) if name in self.graph]
        layers = enumerate(nx.bfs_layers(self.graph, own) if own else ())
        steps = {name: depth for depth, layer in layers for name in layer}
        found = ([steps[end] for end in ends if end in steps] for ends in self._edges)
        return [1 + min(depths) if depths else None for depths in found]

    def _entities(self, request: EditRequest) -> set[str]:
        subject, relation, target = triple_of(request)
        old = self._objects.get((_node(subject), relation), set())
        known = {_node(request.old_target)} if request.old_target is not None else set()
        return {_node(subject), _node(target)} | old | known

    def is_edited(self, requests: Iterable[EditRequest]) -> list[bool]:
        """Return for every fact whether it is edited: same subject and relation, or same prompt.

        Args:
            requests: The edits.
        """
        listed = list(requests)
        written = {(_node(s), r) for s, r, _ in map(triple_of, listed)}
        prompts = {request.prompt for request in listed}
        return [
            (subject, fact.relation) in written or fact.prompt in prompts
            for fact, (subject, _) in zip(self.facts, self._edges, strict=True)
        ]


def triple_of(request: EditRequest) -> Triple:
    """Return an edit's (subject, relation, object) triple; by default from its texts, no relation.

    Args:
        request: The edit.
    """
    return request.triple or (request.subject or request.prompt, "", request.target)


def _node(name: str) -> str:
    return normalise(name)


def facts_of(requests: Sequence[EditRequest]) -> list[Fact]:
    """Extract the facts that the probes of requests state: those with a path of one triple.

    Args:
        requests: Requests with probes, such as the atlas's or MQuAKE's.
    """
    return [
        Fact(*probe.path[0], probe.prompt, probe.answers)
        for request in requests
        for probe in request.probes
        if probe.kind in _FACT_KINDS and len(probe.path) == 1
    ]


def read_facts(path: str | Path) -> list[Fact]:
    """Read facts from JSON Lines with ``subject``, ``relation``, ``object`` and ``prompt``.

    ``answers`` (a text or a list; the object if left out) and ``subject_text`` are optional.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, or a record is not of this form.
    """
    return [_parse_fact(where, value) for where, value in read_values(Path(path))]


def _parse_fact(where: Any, value: object) -> Fact:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with named fields, got {describe(value)}")
    record = Record(value, where, strict=True)
    record.allow(_FIELDS)
    return Fact(
        record.text("subject"),
        record.text("relation"),
        record.text("object"),
        record.text("prompt"),
        record.answers("answers") or (record.text("object"),),
        record.optional_text("subject_text"),
    )
