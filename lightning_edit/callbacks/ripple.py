"""Ripple-effect callback: harm to facts around an edit, by distance in a knowledge graph."""

import logging
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Literal, get_args

import torch
from rich.progress import track
from torch import Tensor

from lightning_edit.atlas.facts import atlas_facts
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback, gather
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.locate.rome import ROME
from lightning_edit.editors.locate.trial import trial_effects
from lightning_edit.edits.request_rows import as_requests
from lightning_edit.evaluation.fact_reader import FactReader, Representation, key_overlaps
from lightning_edit.evaluation.knowledge_graph import FactGraph, facts_of, read_facts, triple_of
from lightning_edit.evaluation.neighbourhoods import (
    FactOutcome,
    NeighbourFact,
    Ripple,
    choose_neighbourhoods,
)
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.ripple import cosine
from lightning_edit.metrics.aspects import to_floats
from lightning_edit.metrics.ripple import RippleScores
from lightning_edit.models.view import resolve
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditRequest
from lightning_edit.types.facts import Fact

log = logging.getLogger(__name__)
#: File in a run folder with one line per fact, edit and evaluation point.
FILE = "ripple.jsonl"
Neighbours = Literal["hidden", "key_overlap", "first_order"]
"""What makes a fact near to an edit."""
#: Facts per step of the progress bar.
_CHUNK = 512


class RippleCallback(MeasurementCallback):
    """Ripple effects: harm to facts close to an edit in hidden space but far in a knowledge graph.

    Before the first edit every fact of a knowledge graph is scored, and around each edit four sets
    are chosen once: ``near`` (the closest facts in the model's hidden space of those more than two
    steps away in the graph), ``hop_1``, ``hop_2`` and ``random`` (unrelated, not in ``near``).
    Every evaluation scores them again. Values: see :class:`~lightning_edit.metrics.RippleScores`;
    ``ripple.jsonl`` in the run folder has one line per fact. Facts that the stream edits are in no
    set. Works under ``EditTrainer``, and in any Trainer for the given ``requests`` or ``data``.

    Args:
        facts: The graph: ``requests`` (facts that the probes of the edits state), ``atlas``
            (geography), a JSON Lines file of triples with prompts, or facts.
        representation: Representation of a fact in hidden space, see
            :class:`~lightning_edit.evaluation.fact_reader.FactReader`.
        layer: Index of the block it is read from; ``None``: the middle one.
        neighbours: What makes a fact near: ``hidden``, cosine similarity of the representations;
            ``key_overlap``, the share of its write that an edit by ROME's constraint adds at the
            fact's key (see :func:`~lightning_edit.functional.ripple.key_overlap`), in block
            ``layer``, by default ROME's. The representation is the key then. ``first_order``: size
            of the first-order effect on the fact's answer, in nats a token, of a trial edit by ROME
            in that block (a target search for each edit before the first one; nothing is kept).
        statistics: Of ``key_overlap`` and ``first_order``: second moments of keys, as for
            :class:`~lightning_edit.editors.ROME`.
        size: Maximum number of facts in a set.
        threshold: Rise of the log perplexity, in nats, above which a fact counts as harmed.
        known_only: Whether only facts that the pristine model answers correctly are used.
        requests: Edits, without ``EditTrainer``; dictionaries need ``prompt`` and ``target``.
        data: A data module of edits, or a JSONL file of edits, without ``EditTrainer``.
        batch_size: Facts per batch.
        seed: Seed of the control sets.
        **kwargs: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Note:
        GIE (arXiv 2403.07825) is reconstructed from its abstract and summaries. One of them takes
        similarity from the edited model; here it is the pristine model's, so that editors are
        compared on the same facts. Under the protocol ``single`` values are means over edits.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        facts: str | Sequence[Fact] = "requests",
        representation: Representation = "subject_last",
        layer: int | None = None,
        neighbours: Neighbours = "hidden",
        statistics: str = "auto",
        size: int = 20,
        threshold: float = math.log(2),
        known_only: bool = True,
        requests: Sequence[EditRequest | Mapping[str, Any]] | Any = (),
        data: EditDataModule | str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = facts
        self.representation: Representation = representation
        self.layer = layer
        self.neighbours: Neighbours = neighbours
        self.statistics = statistics
        self.size = size
        self.threshold = threshold
        self.known_only = known_only
        self.requests = as_requests(requests, may_be_empty=True)
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.facts: tuple[Fact, ...] = ()
        self.outcomes: tuple[FactOutcome, ...] = ()
        self.places: dict[str, list[NeighbourFact]] = {}
        self.require(
            neighbours=(neighbours in get_args(Neighbours), "hidden, key_overlap or first_order"),
            size=(size >= 1, "at least 1"),
            batch_size=(batch_size >= 1, "at least 1"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: the chosen facts and the pristine model's outcomes."""
        return super().state_dict() | {
            "facts": [asdict(fact) for fact in self.facts],
            "outcomes": [(outcome.nll, outcome.rank) for outcome in self.outcomes],
            "places": {edit: [asdict(p) for p in listed] for edit, listed in self.places.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the checkpoint state that :meth:`state_dict` returned.

        Args:
            state_dict: Plain containers.
        """
        super().load_state_dict(state_dict)
        self.facts = tuple(
            Fact(**{**fact, "answers": tuple(fact["answers"])}) for fact in state_dict["facts"]
        )
        self.outcomes = tuple(FactOutcome(*outcome) for outcome in state_dict["outcomes"])
        self.places = {
            edit: [NeighbourFact(**place) for place in listed]
            for edit, listed in state_dict["places"].items()
        }

    def reset(self) -> None:
        """Reset the state before a new run."""
        super().reset()
        self.facts, self.outcomes, self.places = (), (), {}

    def measure(self, context: EvalContext) -> Measurement:
        """Choose the facts around each edit on the pristine model; later, score them again.

        Args:
            context: The model, and the edits in force.
        """
        overlap = self.neighbours == "key_overlap"
        layer = self._layer(context.model) if overlap else self.layer
        kind: Representation = "key" if overlap else self.representation
        reader = FactReader(context.model, context.encoder, kind, layer, self.batch_size)
        if self.before is None:
            self._choose_neighbourhoods(context, reader)
            return Measurement({"ripple/facts": float(len(self.facts))})
        edits = [request.id for request in context.requests if request.id in self.places]
        edits = edits or ([] if context.requests else list(self.places))
        needed = sorted({place.fact for edit in edits for place in self.places[edit]})
        asked = context.map_sharded([self.facts[number] for number in needed], reader.outcomes)
        now = {needed[place]: outcome for place, outcome in gather(asked)}
        mine = edits[context.rank :: context.world_size]
        ripples = [
            Ripple(edit, place, self.outcomes[place.fact], now[place.fact])
            for edit in mine
            for place in self.places[edit]
        ]
        metric = RippleScores(self.threshold).to(context.device)
        metric.update(ripples)
        return Measurement(to_floats(metric.compute()), [self._row(ripple) for ripple in ripples])

    def on_results(self, folder: RunFolder) -> None:
        """Write ``ripple.jsonl``: the rows of every evaluation, each with its point (``after``).

        Args:
            folder: The run's folder.
        """
        name = type(self).__name__
        folder.write_lines(
            folder.path / FILE,
            (
                {"after": line["after"], **row}
                for line in read_rows(folder.measures)
                if line["by"] == name
                for row in line.get("rows", ())
            ),
        )

    def _row(self, ripple: Ripple) -> dict[str, Any]:
        place, before, after = ripple.place, ripple.before, ripple.after
        return {
            "edit_id": ripple.edit_id,
            "fact": self.facts[place.fact].to_row(),
            "distance": place.distance,
            "similarity": place.similarity,
            "set": place.set,
            "nll_before": before.nll,
            "nll_after": after.nll,
            "rank_before": before.rank,
            "rank_after": after.rank,
            "right_before": before.right,
            "right_after": after.right,
        }

    # --------------------------------------------------------------------------------- choosing

    def _choose_neighbourhoods(self, context: EvalContext, reader: FactReader) -> None:
        requests = self._requests_to_measure(context)
        graph = FactGraph(self._candidate_facts(requests))
        if not graph.facts:
            raise ConfigError(
                "no facts around the edits: their probes state none; give RippleCallback `facts` "
                "a JSON Lines file of triples with prompts, or `atlas`"
            )
        # Facts and edits in one list, so that both are sharded over processes.
        asked = [*graph.facts, *map(_edit_as_fact, requests)]
        found = dict(gather(context.map_sharded(asked, lambda part: _read(reader, part))))
        outcomes = [found[number][0] for number in range(len(graph.facts))]
        if self.neighbours == "first_order":
            similar = self._trial_effects(context, requests, graph.facts)
        else:
            vectors = torch.stack([found[number][1] for number in range(len(asked))])
            similar = self._similarity(
                context, vectors[len(graph.facts) :], vectors[: len(graph.facts)]
            ).tolist()
        usable = [
            not edited and (outcome.right or not self.known_only)
            for edited, outcome in zip(graph.is_edited(requests), outcomes, strict=True)
        ]
        if not any(usable):
            log.warning(
                "the model knows none of %d facts, so no ripple effect can be measured", len(usable)
            )
        chosen = {
            request.id: choose_neighbourhoods(
                graph.distances(request),
                row,
                usable,
                self.size,
                random.Random(f"{self.seed}/{request.id}"),
            )
            for request, row in zip(requests, similar, strict=True)
        }
        self._keep_chosen(graph.facts, outcomes, chosen)

    def _layer(self, model: Any) -> int:
        return (
            ROME.default_layers(resolve(model).num_blocks)[0] if self.layer is None else self.layer
        )

    def _similarity(self, context: EvalContext, edits: Tensor, facts: Tensor) -> Tensor:
        if self.neighbours == "hidden":
            return cosine(edits, facts)
        layer = self._layer(context.model)
        return key_overlaps(context.model, context.encoder, layer, edits, facts, self.statistics)

    def _trial_effects(
        self, context: EvalContext, requests: Sequence[EditRequest], facts: Sequence[Fact]
    ) -> list[list[float]]:
        layer, model, prompts = self._layer(context.model), context.model, context.encoder

        def work(part: Sequence[EditRequest]) -> list[list[float]]:
            effects = trial_effects(model, prompts, part, facts, layer, self.statistics)
            listed: list[list[float]] = effects.abs().tolist()
            return listed

        found = dict(gather(context.map_sharded(requests, work)))
        return [found[number] for number in range(len(requests))]

    def _keep_chosen(
        self,
        facts: Sequence[Fact],
        outcomes: Sequence[FactOutcome],
        chosen: Mapping[str, Sequence[NeighbourFact]],
    ) -> None:
        """Keep only the chosen facts, and renumber them."""
        used = sorted({place.fact for place in chain.from_iterable(chosen.values())})
        number = {old: new for new, old in enumerate(used)}
        self.facts = tuple(facts[old] for old in used)
        self.outcomes = tuple(outcomes[old] for old in used)
        self.places = {
            edit: [NeighbourFact(number[p.fact], p.distance, p.similarity, p.set) for p in listed]
            for edit, listed in chosen.items()
        }

    def _requests_to_measure(self, context: EvalContext) -> list[EditRequest]:
        if context.requests:
            return list(context.requests)
        if isinstance(self.data, str):
            from lightning_edit.datamodules import JSONLDataModule  # imported only when needed

            self.data = JSONLDataModule(self.data)
        given = list(self.requests)
        if self.data is not None:
            self.data.setup("edit")
            given += self.data.edit_requests()
        if not given:
            raise ConfigError(
                "RippleCallback measures facts around edits, but got no edits; outside "
                "`lightning-edit edit` give it `requests` or `data`"
            )
        return given

    def _candidate_facts(self, requests: Sequence[EditRequest]) -> Sequence[Fact]:
        if not isinstance(self.source, str):
            return self.source
        if self.source == "requests":
            return facts_of(requests)
        return atlas_facts(load_atlas()) if self.source == "atlas" else read_facts(self.source)


def _edit_as_fact(request: EditRequest) -> Fact:
    """Convert an edit to a fact, for its hidden representation."""
    return Fact(*triple_of(request), request.prompt, (request.target,), request.subject)


def _read(reader: FactReader, facts: Sequence[Fact]) -> list[tuple[FactOutcome, Tensor]]:
    chunks = [facts[start : start + _CHUNK] for start in range(0, len(facts), _CHUNK)]
    shown = track(
        chunks, "Facts on the pristine model", transient=True, disable=not sys.stderr.isatty()
    )
    return [pair for chunk in shown for pair in zip(*reader.read(chunk), strict=True)]
