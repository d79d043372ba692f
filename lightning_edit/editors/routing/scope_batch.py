"""Batches that train a scope classifier and a counterfactual model: edits, in and out of scope."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from lightning_edit.datamodules.loader import StepRequests
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatchSampler
from lightning_edit.editors.routing.neighbours import Neighbours
from lightning_edit.editors.routing.scope_classifier import StoredEdit
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest

#: Kinds of questions in scope: the paper's edit, rephrase, implication and yes-no question.
VIEWS = ("rewrite", "rephrase", "reversed_relation", "fact_check")
Fact = tuple[str, str]


class ScopeRow(NamedTuple):
    """A question with its answer, and its edit.

    Args:
        edit: Number of the edit in the batch.
        prompt: The question.
        answer: Its answer with the edit; out of scope the answer without it, ``None`` if unknown.
        separator: Text between them; ``None``: by rule.
        kind: Kind of the probe that it comes from.
        scope: Numbers of all edits of the batch whose scope it is known to be in.
    """

    edit: int
    prompt: str
    answer: str | None
    separator: str | None
    kind: str
    scope: frozenset[int]


@dataclass(frozen=True)
class ScopeBatch:
    """Texts of one step: edits, questions in their scope, and questions outside.

    Args:
        edits: The edits.
        inside: Questions in scope; in training one of each edit.
        outside: Questions out of scope of their edit.
        requests: The requests that the edits come from.
    """

    edits: tuple[StoredEdit, ...]
    inside: tuple[ScopeRow, ...]
    outside: tuple[ScopeRow, ...]
    requests: tuple[EditRequest, ...]

    def to(self, *args: object, **kwargs: object) -> "ScopeBatch":
        """Return the batch unchanged on a device transfer: it is text, without tensors.

        Args:
            *args: As for tensors, not used.
            **kwargs: As for tensors, not used.
        """
        return self


@dataclass(frozen=True)
class ScopeSampler:
    """Sampler of batches of edits with questions in and out of their scope.

    Args:
        views: Kinds of questions in scope, each as likely as another where a request has it.
        own_probes: Questions out of scope from each request's own probes.
        other_facts: Such questions from other requests, for each edit.
        hard_neg_prob: Probability that one of the latter is a near neighbour.
        any_wording: Write an edit in any wording of its request.
        any_target: Write an edit with the target of another request, so that answers must be read
            from the edit.
    """

    views: tuple[str, ...] = VIEWS
    own_probes: int = 1
    other_facts: int = 1
    hard_neg_prob: float = 0.5
    any_wording: bool = False
    any_target: bool = False

    def sample(
        self,
        requests: Sequence[EditRequest],
        rng: Random,
        others: Any,
        neighbours: Neighbours | None,
    ) -> ScopeBatch:
        """Sample the texts of a training step.

        Args:
            requests: The edits.
            rng: Random generator of all choices.
            others: Sequence of requests that provides other facts and targets.
            neighbours: Their similarities; ``None``: no hard negatives.
        """
        inside, edits = [], []
        written = [self._edit(request, rng, others) for request in requests]
        known = _Scopes(written)
        for number, request in enumerate(written):
            view = _any_wording(request, rng) if self.any_wording else request
            edits.append(StoredEdit(view.prompt, view.target))
            views = self.in_scope(view, number)
            if not views:
                raise DataError(
                    f"request {request.id} has no question of the kinds {', '.join(self.views)} "
                    "that training takes as in scope; add rewrite to `views`, which all have"
                )
            kind = rng.choice(sorted({row.kind for row in views}))
            row = rng.choice([row for row in views if row.kind == kind])
            inside.append(known.row(row, _fact(request)))
        outside = self._own(requests, rng, known)
        outside += self._others(requests, rng, others, neighbours, known)
        return ScopeBatch(tuple(edits), tuple(inside), tuple(outside), tuple(requests))

    def validation_batch(
        self, requests: Sequence[EditRequest], rng: Random, others: Any
    ) -> ScopeBatch:
        """Return the edits with all their questions: views in scope, rephrases, locality probes.

        Args:
            requests: The edits.
            rng: Random generator for other facts, which are used where there are no probes.
            others: Sequence of requests that provides the other facts.
        """
        known = _Scopes(requests)
        inside = [
            row
            for number, request in enumerate(requests)
            for row in replace(self, views=(*self.views, "rewrite", "rephrase")).in_scope(
                request, number
            )
        ]
        outside = [
            ScopeRow(n, one.prompt, one.answers[0], request.separator, one.kind, frozenset())
            for n, request in enumerate(requests)
            for one in request.probes
            if one.expect == "unchanged"
        ]
        if not outside:
            outside = self._others(requests, rng, others, None, known)
        edits = [StoredEdit(request.prompt, request.target) for request in requests]
        return ScopeBatch(tuple(edits), tuple(inside), tuple(outside), tuple(requests))

    def in_scope(self, request: EditRequest, number: int) -> list[ScopeRow]:
        """Return the questions in scope of an edit.

        Args:
            request: The edit.
            number: Its number in the batch.
        """
        return [
            ScopeRow(
                number, one.prompt, one.answers[0], request.separator, one.kind, frozenset([number])
            )
            for one in request.all_probes()
            if one.kind in self.views and one.expect != "unchanged"
        ]

    def _edit(self, request: EditRequest, rng: Random, others: Any) -> EditRequest:
        if not self.any_target or not len(others):
            return request
        target = others[rng.randrange(len(others))].target
        # Answers of implications belong to the target that the data set gives.
        return replace(request, target=target, probes=())

    def _own(
        self, requests: Sequence[EditRequest], rng: Random, known: "_Scopes"
    ) -> list[ScopeRow]:
        source = MetaBatchSampler(None, self.own_probes, 0)
        return [
            known.row(
                ScopeRow(n, one.prompt, one.answers[0], request.separator, one.kind, frozenset()),
                one.path[-1][:2] if one.path else None,
            )
            for n, request in enumerate(requests)
            for one in source.sample_locality_probes(request, rng)
        ]

    def _others(
        self,
        requests: Sequence[EditRequest],
        rng: Random,
        others: Any,
        neighbours: Neighbours | None,
        known: "_Scopes",
    ) -> list[ScopeRow]:
        if not self.other_facts:
            return []
        if not hasattr(others, "__len__") or not hasattr(others, "__getitem__"):
            raise DataError(
                f"other_facts={self.other_facts} takes questions from the loader's data set by "
                f"number, but got {type(others).__name__}, which has no numbers; use a map-style "
                "data set, or set other_facts to 0"
            )
        rows = []
        for number, request in enumerate(requests):
            for _ in range(self.other_facts):
                drawn = rng.randrange(len(others))
                if neighbours is not None and rng.random() < self.hard_neg_prob:
                    near = neighbours.draw(request, rng)
                    drawn = drawn if near is None else near
                other = others[drawn]
                prompt = rng.choice((other.prompt, *other.rephrases))
                row = ScopeRow(
                    number, prompt, other.old_target, other.separator, "other", frozenset()
                )
                row = known.row(row, _fact(other))
                if number not in row.scope:
                    rows.append(row)
        return rows


class _Scopes:
    """Knows which edits of a batch a question belongs to: by its text, and by its fact."""

    def __init__(self, requests: Sequence[EditRequest]) -> None:
        self.texts: dict[str, set[int]] = {}
        self.facts: dict[Fact, set[int]] = {}
        for number, request in enumerate(requests):
            for text in (request.prompt, *request.rephrases):
                self.texts.setdefault(text, set()).add(number)
            if (fact := _fact(request)) is not None:
                self.facts.setdefault(fact, set()).add(number)

    def row(self, row: ScopeRow, fact: Any) -> ScopeRow:
        found = self.texts.get(row.prompt, set()) | self.facts.get(fact, set())
        return row._replace(scope=row.scope | found)


def _any_wording(request: EditRequest, rng: Random) -> EditRequest:
    wordings = [request.prompt, *request.rephrases]
    prompt = wordings.pop(rng.randrange(len(wordings)))
    rest = tuple(wordings)
    return replace(request, prompt=prompt, rephrases=rest, subject=None, subject_start=None)


def _fact(request: EditRequest) -> Fact | None:
    return None if request.triple is None else (request.triple[0], request.triple[1])


@dataclass(frozen=True)
class ScopeCollate:
    """Collate function of a loader: samples the texts of a step, in its workers.

    Args:
        sampler: The sampler.
        stage: ``train``, ``val`` or ``test``.
        others: Requests that provide other facts.
        neighbours: Their similarities; ``None``: no hard negatives.
        seed: Seed of the choices; together with epoch and batch index it determines them.
    """

    sampler: ScopeSampler
    stage: str
    others: Any
    neighbours: Neighbours | None
    seed: int

    def __call__(self, requests: Sequence[EditRequest]) -> ScopeBatch:
        """Sample the texts of one step.

        Args:
            requests: :class:`~lightning_edit.datamodules.loader.StepRequests`.

        Raises:
            DataError: If the requests do not carry epoch and batch index.
        """
        if not isinstance(requests, StepRequests):
            raise DataError(
                "a training batch is sampled by epoch and batch index, but the loader sent a "
                f"{type(requests).__name__} without them; build the loader with "
                "`lightning_edit.datamodules.loader.request_loader`, or give a DataLoader of plain "
                "requests"
            )
        if self.stage == "train":
            rng = Random(f"{self.seed}/{requests.epoch}/{requests.batch_idx}")
            return self.sampler.sample(requests, rng, self.others, self.neighbours)
        rng = Random(f"{self.seed}/{self.stage}/{requests.batch_idx}")
        return self.sampler.validation_batch(requests, rng, self.others)
