"""Neuron index of MELO: clusters of activations that say which LoRA block a prompt reads.

Axis names: ``n`` -- vectors of a batch; ``b`` -- rows; ``d`` -- width of the index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.base import Memory
from lightning_edit.edits.delta import Delta

Label = tuple[int, ...]

#: Block of a query that no cluster holds.
NO_BLOCK = -100
#: Keys that are closer than this share of their norm are readings of one prompt (rounding).
_SAME = 1e-4
#: What keeps two clusters apart that meet in the middle, as in the authors' code.
_GAP = 1e-5


@dataclass
class Cluster:
    """A ball of edited prompts with one answer.

    Args:
        centre: Mean of the keys.
        radius: Its radius.
        label: Token ids of the answer of its first member.
        keys: Keys of its members.
        blocks: LoRA block of each member.
    """

    centre: Float[Tensor, " d"]
    radius: float
    label: Label
    keys: list[Float[Tensor, " d"]]
    blocks: list[int]


@dataclass
class NeuronIndex(Memory):
    """Clusters that the edits in force come to, by the rules of MELO.

    Args:
        sum_labels: Whether two answers are the same if their token ids have the same sum, as in the
            authors' code; otherwise if the ids are equal.
    """

    sum_labels: bool = False
    clusters: list[Cluster] = field(default_factory=list)
    forgotten: list[Tensor] = field(default_factory=list)
    conflicts: int = 0
    batches: int = 0
    deltas: list[Delta] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Add a batch of edits, which share one LoRA block.

        Args:
            delta: Edits with ``key`` and ``label``, one row per request, and the ``radius`` of new
                clusters.
        """
        labels = [tuple(one for one in row.tolist() if one >= 0) for row in delta.state["label"]]
        self.insert(delta.state["key"], labels, float(delta.state["radius"]))
        self.deltas.append(delta)

    def nearest(self, queries: Float[Tensor, "n d"]) -> tuple[list[int], list[float]]:
        """Return the nearest cluster of each query and the distance to its centre (L2).

        Args:
            queries: Activations at prompts' last tokens; there is at least one cluster.
        """
        centres = torch.stack([one.centre for one in self.clusters]).to(queries)
        distances = torch.stack([(centres - row).norm(dim=1) for row in queries])
        least, found = distances.min(1)
        return found.tolist(), least.tolist()

    def insert(
        self, keys: Float[Tensor, "n d"], labels: Sequence[Label], radius: float
    ) -> list[str]:
        """Insert a batch; its number is that of the batches before it.

        Nearest clusters are those before the batch; the first batch has none, so each of its keys
        is a cluster.

        Args:
            keys: Activations at the last tokens of the prompts.
            labels: Token ids of their answers.
            radius: Radius of a new cluster (init_radius).

        Returns:
            What became of each: ``first``, ``far``, ``same``, ``conflict``, or ``again`` if it took
            the place of the same prompt with another answer.
        """
        block, first = self.batches, not self.clusters
        self.batches += 1
        if first:
            self.clusters += [
                Cluster(key, radius, label, [key], [block])
                for key, label in zip(keys, labels, strict=True)
            ]
            return ["first"] * len(labels)
        decided = []
        for key, label, near, distance in zip(keys, labels, *self.nearest(keys), strict=True):
            cluster = self.clusters[near]
            new = Cluster(key, radius, label, [key], [block])
            kind = self._kind(new, cluster, distance)
            if kind == "far":
                self.clusters.append(new)
            elif kind == "same":
                self._join(new, cluster)
            elif kind == "again":
                self.forgotten += cluster.keys
                self.clusters[near] = replace(new, radius=max(cluster.radius, radius))
            else:
                self._split(new, cluster, distance)
            decided.append(kind)
        return decided

    def _kind(self, new: Cluster, cluster: Cluster, distance: float) -> str:
        """Return what becomes of a new key whose nearest cluster this is."""
        if distance > cluster.radius + new.radius:
            return "far"
        if self._same(new.label, cluster.label):
            return "same"
        apart = max(float((one - new.centre).norm()) for one in cluster.keys)
        return "again" if apart <= _SAME * float(new.centre.norm()) else "conflict"

    def _join(self, new: Cluster, cluster: Cluster) -> None:
        """Add a key to a cluster of its answer, which is never smaller than a new one."""
        cluster.keys += new.keys
        cluster.blocks += new.blocks
        members = torch.stack(cluster.keys)
        cluster.centre = members.mean(0)
        spread = float((members - cluster.centre).norm(dim=1).max())
        cluster.radius = max(spread, new.radius)

    def _split(self, new: Cluster, cluster: Cluster, distance: float) -> None:
        """Let the clusters of two answers meet in the middle; members outside are forgotten."""
        self.conflicts += 1
        cluster.radius = distance / 2 - _GAP
        new.radius = distance / 2 + _GAP
        self.clusters.append(new)
        apart = (torch.stack(cluster.keys) - cluster.centre).norm(dim=1).tolist()
        members = list(zip(cluster.keys, cluster.blocks, apart, strict=True))
        self.forgotten += [one for one, _, far in members if far > cluster.radius]
        kept = [(one, number) for one, number, far in members if far <= cluster.radius]
        # A cluster without members stays, and sends its queries to no block.
        kept = kept or [(cluster.centre, NO_BLOCK)]
        cluster.keys, cluster.blocks = [one for one, _ in kept], [number for _, number in kept]

    def _same(self, one: Label, other: Label) -> bool:
        return sum(one) == sum(other) if self.sum_labels else one == other

    def copy(self) -> "NeuronIndex":
        """Return a copy that does not change with what is added here later."""
        clusters = [
            replace(one, keys=list(one.keys), blocks=list(one.blocks)) for one in self.clusters
        ]
        return replace(self, clusters=clusters, forgotten=[], deltas=list(self.deltas))

    def look_up(self, queries: Float[Tensor, "b d"]) -> list[int]:
        """Return the LoRA block of each query: that of the nearest member of the nearest cluster.

        Args:
            queries: Activations at prompts' last tokens.
        """
        if not self.clusters:
            return [NO_BLOCK] * len(queries)
        blocks = []
        for query, near, distance in zip(queries, *self.nearest(queries), strict=True):
            cluster = self.clusters[near]
            members = torch.stack(cluster.keys).to(query)
            member = int((members - query).norm(dim=1).argmin())
            blocks.append(cluster.blocks[member] if distance <= cluster.radius else NO_BLOCK)
        return blocks
