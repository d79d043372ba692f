"""Ripple effects of an edit as a graph of facts, read from ``ripple.jsonl``. Torch-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import networkx as nx

from lightning_edit.exceptions import DataError
from lightning_edit.storage.jsonl import iterate_rows

FILE = "ripple.jsonl"


@dataclass(frozen=True)
class RippleFact:
    """One fact of the knowledge graph, before and after an edit.

    Args:
        edit_id: The edit.
        fact: Subject, relation and object.
        prompt: The prompt that asks the model for it.
        distance: Steps from the edit in the knowledge graph; ``None`` if there is no path.
        similarity: Similarity of the hidden states of fact and edit; ``None`` if not measured.
        set: Set that it was drawn from: near, hop_1, hop_2 or random; empty if not recorded.
        change: Rise of the answer's negative log-probability, nats per token; above 0 is harm.
        right_before: Whether the pristine model gave the right answer.
        right_after: Whether the edited model does.
    """

    edit_id: str
    fact: tuple[str, str, str]
    prompt: str
    distance: int | None
    similarity: float | None
    set: str
    change: float
    right_before: bool | None
    right_after: bool | None

    @property
    def outcome(self) -> str:
        """Outcome of the fact in words: kept, lost, gained or not known before."""
        if self.right_before is None or self.right_after is None:
            return "measured"
        names = {(1, 1): "kept", (1, 0): "lost", (0, 1): "gained", (0, 0): "not known before"}
        return names[int(self.right_before), int(self.right_after)]


@dataclass(frozen=True)
class Node:
    """A graph node: a fact and its coordinates.

    Args:
        fact: The fact; ``None`` is the edit in the middle.
        x: Coordinate, -1 to 1.
        y: Coordinate, -1 to 1.
    """

    fact: RippleFact | None
    x: float
    y: float


@dataclass(frozen=True)
class RippleGraph:
    """Graph layout of one edit and the facts around it, on rings of knowledge-graph distance.

    Args:
        edit_id: The edit.
        nodes: The edit first, then the facts from the inner to the outer ring.
        links: Edges as pairs of indices into ``nodes``: facts that share an entity.
        rings: Distance in words and radius of each ring, the inner ring first.
        left_out: Number of facts that were measured but are not drawn.
    """

    edit_id: str
    nodes: tuple[Node, ...]
    links: tuple[tuple[int, int], ...]
    rings: tuple[tuple[str, float], ...]
    left_out: int = 0

    @property
    def facts(self) -> list[RippleFact]:
        """Facts of the graph's nodes, without the edit itself."""
        return [node.fact for node in self.nodes if node.fact is not None]


def read_ripples(folder: Path) -> dict[str, list[RippleFact]]:
    """Read the ripple effects of a run: the facts measured around each edit.

    Args:
        folder: Folder of the run.

    Returns:
        Facts by edit; of a fact measured several times, the last measurement counts. Empty if the
        run measured none.

    Raises:
        DataError: If a line is not in the format that a run writes.
    """
    path = folder / FILE
    found: dict[str, dict[tuple[str, ...], RippleFact]] = {}
    for number, row in iterate_rows(path) if path.exists() else ():
        fact = _read(row, f"{path}, line {number}")
        found.setdefault(fact.edit_id, {})[(*fact.fact, fact.prompt)] = fact
    return {edit: list(facts.values()) for edit, facts in found.items()}


def _read(row: dict[str, Any], where: str) -> RippleFact:
    try:
        fact = row["fact"]
        distance = row["distance"]
        return RippleFact(
            edit_id=row["edit_id"],
            fact=(fact["subject"], fact["relation"], fact["object"]),
            prompt=fact["prompt"],
            distance=None if distance is None or not math.isfinite(distance) else int(distance),
            similarity=None if row.get("similarity") is None else float(row["similarity"]),
            set=str(row.get("set", "")),
            change=float(row["nll_after"]) - float(row["nll_before"]),
            right_before=row.get("right_before"),
            right_after=row.get("right_after"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: not a fact of this version ({error!r}); give the folder as it was written"
        ) from error


def lay_out(facts: Sequence[RippleFact], limit: int = 250) -> RippleGraph:
    """Compute the ring layout (shell layout) of the facts around one edit.

    Each ring is a distance in the knowledge graph; the outermost ring has the facts without a path.
    On a ring, facts are near those on the next inner ring that they share an entity with.

    Args:
        facts: Facts of one edit, at least one.
        limit: Number of facts to draw: the nearest first, then those that changed most.
    """
    chosen = sorted(facts, key=lambda f: (_ring(f), -abs(f.change)))[:limit]
    rings: dict[float, list[int]] = {}
    for position, fact in enumerate(chosen, 1):
        rings.setdefault(_ring(fact), []).append(position)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(chosen) + 1))
    angles = {0: 0.0}
    shells, inner = [[0]], [0]
    for ring in sorted(rings):
        first = len(shells) == 1
        parents = {p: [0] if first else _linked(p, chosen, inner) for p in rings[ring]}
        graph.add_edges_from((parent, p) for p, found in parents.items() for parent in found)
        order = sorted(rings[ring], key=lambda p: _angle(parents[p], angles))
        angles |= {p: 2 * math.pi * i / len(order) for i, p in enumerate(order)}
        shells.append(order)
        inner = order
    # networkx leaves room for one more shell; rescale so that the outermost has radius 1.
    places = nx.shell_layout(graph, nlist=shells, rotate=0, scale=len(shells) / (len(shells) - 1))
    nodes = tuple(
        Node(chosen[p - 1] if p else None, float(places[p][0]), float(places[p][1]))
        for p in range(len(chosen) + 1)
    )
    rings_at = tuple(
        (distance_words(chosen[shell[0] - 1].distance), number / (len(shells) - 1))
        for number, shell in enumerate(shells[1:], 1)
    )
    left_out = len(facts) - len(chosen)
    return RippleGraph(chosen[0].edit_id, nodes, tuple(graph.edges), rings_at, left_out)


def distance_words(distance: int | None) -> str:
    """Format a knowledge-graph distance in words."""
    if distance is None:
        return "no path"
    return f"{distance} step" + ("s" if distance != 1 else "")


def _ring(fact: RippleFact) -> float:
    return math.inf if fact.distance is None else float(fact.distance)


def _linked(position: int, facts: Sequence[RippleFact], inner: Sequence[int]) -> list[int]:
    """Return up to two facts of the next inner ring that share an entity with a fact."""
    subject, _, target = facts[position - 1].fact
    sharing = (p for p in inner if {subject, target} & set(facts[p - 1].fact[::2]))
    return list(islice(sharing, 2))


def _angle(parents: Sequence[int], angles: dict[int, float]) -> float:
    return angles[parents[0]] if parents else math.tau
