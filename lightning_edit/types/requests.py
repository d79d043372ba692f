"""The values that travel through the library: requests, probes and tokenised batches.

Nothing here imports torch, so data files can be read and checked without loading it.

Axis names used in the whole project: ``n`` -- edits in a batch; ``r`` -- rows (an edit under one
context
template); ``t`` -- token positions; ``d`` -- hidden width; ``d_in``/``d_out`` -- a weight acts as
``y = W k`` with W of shape (d_out, d_in); ``v`` -- vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Expect = Literal["target", "unchanged", "answer"]
Protocol = Literal["single", "batch", "sequential"]
Mode = Literal["tf", "gen"]
Rule = Literal["any", "all"]
Triple = tuple[str, str, str]

#: Which aspect of the report a kind of probe belongs to.
ASPECT_OF_KIND: Mapping[str, str] = {
    "rewrite": "reliability",
    "rephrase": "generalization",
    "neighborhood": "locality",
    "other_attribution": "locality",
    "distracting_neighbor": "locality",
    "other_task": "locality",
    "natural_question": "locality",
    "relation_specificity": "locality",
    "forgetfulness": "locality",
    "subject_alias": "portability",
    "reversed_relation": "portability",
    "one_hop": "portability",
    "multi_hop": "portability",
    "known_fact": "known",
    "premise": "premise",
}

#: Tests that are made of several questions, by the name of their score, and its aspect.
ASPECT_OF_CRITERION: Mapping[str, str] = {
    "multi_hop": "portability",
    "logical_generalization": "portability",
    "compositionality_i": "portability",
    "compositionality_ii": "portability",
    "subject_aliasing": "portability",
    "relation_specificity": "locality",
    "forgetfulness": "locality",
}

#: What is expected of a kind unless a probe says otherwise.
_EXPECT_OF_ASPECT: Mapping[str, Expect] = {
    "reliability": "target",
    "generalization": "target",
    "locality": "unchanged",
    "portability": "answer",
    "known": "answer",
    "premise": "answer",
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Group:
    """Questions that make one test, as in MQuAKE and RippleEdits.

    Args:
        name: Name of the test, unique in its case; probes of one test have equal groups.
        criterion: One of :data:`ASPECT_OF_CRITERION`, for the score; ``None`` for a premise.
        rule: ``any``: one right answer passes the test. ``all``: each must be right.
        premises: Names of tests of kind ``premise`` that the pristine model must pass, or else this
            one says nothing about the edit.

    Raises:
        ValueError: On an empty name, or an unknown criterion or rule.
    """

    name: str
    criterion: str | None = None
    rule: Rule = "any"
    premises: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ", ".join(ASPECT_OF_CRITERION)
        _require(bool(self.name.strip()), "a group of probes has no name; give it one")
        _require(
            self.criterion is None or self.criterion in ASPECT_OF_CRITERION,
            f"criterion {self.criterion!r} is unknown; use one of {known}",
        )
        rules = get_args(Rule)
        _require(self.rule in rules, f"rule {self.rule!r} is unknown; use one of {rules}")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Group":
        """Read what :func:`dataclasses.asdict` wrote."""
        return cls(**{**record, "premises": tuple(record.get("premises", ()))})


@dataclass(frozen=True)
class Probe:
    """One question that is put to the model before and after an edit.

    Args:
        kind: One of :data:`ASPECT_OF_KIND`.
        prompt: Text the model continues.
        answers: Accepted answers, the preferred one first; the others are aliases.
        expect: ``target``: the edit's new answer is right here. ``unchanged``: whatever the
            pristine model
            says must stay. ``answer``: ``answers`` is right once the edit holds. Default: by
            aspect.
        path: Triples of the knowledge graph that lead from the edit to the answer, where known.
        old: The answer before the edit, where it differs and is known.
        group: The test that this question is part of; ``None`` where it stands for itself.

    Raises:
        ValueError: On an unknown kind, an empty prompt or an empty answer.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    expect: Expect = "unchanged"
    path: tuple[Triple, ...] = ()
    old: str | None = None
    group: Group | None = None

    def __post_init__(self) -> None:
        kinds = ", ".join(ASPECT_OF_KIND)
        _require(self.kind in ASPECT_OF_KIND, f"kind {self.kind!r} is unknown; use one of {kinds}")
        _require(
            bool(self.prompt.strip()), f"a {self.kind} probe has an empty prompt; give it text"
        )
        _require(
            bool(self.answers) and all(answer.strip() for answer in self.answers),
            f"the {self.kind} probe {self.prompt!r} has an empty answer; "
            "list at least one non-empty answer",
        )

    @property
    def aspect(self) -> str:
        """The aspect of the report this probe counts towards."""
        return ASPECT_OF_KIND[self.kind]

    @classmethod
    def of(
        cls,
        kind: str,
        prompt: str,
        answers: str | Sequence[str],
        path: tuple[Triple, ...] = (),
        old: str | None = None,
        group: Group | None = None,
    ) -> "Probe":
        """Make a probe whose expectation follows from its kind."""
        listed = (answers,) if isinstance(answers, str) else tuple(answers)
        expect = _EXPECT_OF_ASPECT[ASPECT_OF_KIND[kind]] if kind in ASPECT_OF_KIND else "unchanged"
        return cls(kind, prompt, listed, expect, path, old, group)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Probe":
        """Read what :func:`dataclasses.asdict` wrote, or ``kind``, ``prompt`` and ``answers``."""
        group = record.get("group")
        probe = cls.of(
            record["kind"],
            record["prompt"],
            record["answers"],
            tuple(tuple(triple) for triple in record.get("path", ())),
            record.get("old"),
            None if group is None else Group.from_dict(group),
        )
        expect = record.get("expect")
        return probe if expect is None else replace(probe, expect=expect)


@dataclass(frozen=True)
class EditRequest:
    """One fact to write into a language model, with the questions that test it.

    Args:
        id: Unique name of the request inside its stream.
        prompt: Text that ends where the answer begins, subject included ("The capital of France
            is").
        target: The answer the edited model is to give.
        subject: The entity inside ``prompt``; ``None`` for editors that need none.
        old_target: What the model says, or should have said, before.
        rephrases: Other wordings of the prompt; each becomes a ``rephrase`` probe.
        probes: Locality, portability and further probes.
        subject_start: Character offset of the subject in the prompt; found when left out.
        case: Requests with one case name belong together (several edits behind one multi-hop
            question): they stand next to each other and are written in one step.
        triple: The new fact as names of a knowledge graph, where they differ from the texts.

    Raises:
        ValueError: On empty texts, or a subject that does not stand in the prompt.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    old_target: str | None = None
    rephrases: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    subject_start: int | None = None
    case: str | None = None
    triple: Triple | None = None

    def __post_init__(self) -> None:
        _require(bool(self.id), "a request needs a non-empty id")
        _require(
            bool(self.prompt.strip()),
            f"request {self.id}: `prompt` is empty; give the text to edit",
        )
        _require(
            bool(self.target.strip()), f"request {self.id}: `target` is empty; give the new answer"
        )
        if self.subject is None:
            return
        start = self.prompt.find(self.subject) if self.subject_start is None else self.subject_start
        found = (
            bool(self.subject) and self.prompt[start : start + len(self.subject)] == self.subject
        )
        _require(
            start >= 0 and found,
            f"request {self.id}: subject {self.subject!r} does not stand in the prompt "
            f"{self.prompt!r}; "
            "write it there as it is spelled in `subject`",
        )
        object.__setattr__(self, "subject_start", start)

    @property
    def subject_end(self) -> int | None:
        """Character offset just after the subject, or ``None`` without a subject."""
        if self.subject is None or self.subject_start is None:
            return None
        return self.subject_start + len(self.subject)

    def all_probes(self) -> Iterator[Probe]:
        """Yield the edit itself, its rephrasings, and every further probe."""
        yield Probe("rewrite", self.prompt, (self.target,), "target")
        for rephrase in self.rephrases:
            yield Probe("rephrase", rephrase, (self.target,), "target")
        yield from self.probes

    def to(self, *args: object, **kwargs: object) -> "EditRequest":
        """Return the request itself: it is text, so there is nothing to move to a device.

        Lightning moves what has a ``to`` by it; without one it would take the frozen request apart.

        Args:
            *args: As for tensors, not used.
            **kwargs: As for tensors, not used.
        """
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EditRequest":
        """Read what :meth:`to_dict` wrote."""
        values = dict(record)
        values["rephrases"] = tuple(values.get("rephrases", ()))
        triple = values.get("triple")
        values["triple"] = None if triple is None else tuple(triple)
        values["probes"] = tuple(Probe.from_dict(probe) for probe in values.get("probes", ()))
        return cls(**values)


def cases_of(requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
    """Put requests of one case together; a request without a case is one by itself.

    Args:
        requests: Requests, those of one case next to each other.

    Returns:
        Cases in order.

    Raises:
        ValueError: If requests of one case stand apart.
    """
    cases: list[list[EditRequest]] = []
    seen: set[str] = set()
    for request in requests:
        if request.case is not None and cases and cases[-1][0].case == request.case:
            cases[-1].append(request)
            continue
        _require(
            request.case not in seen,
            f"request {request.id}: the others of case {request.case!r} stand elsewhere; "
            "put the requests of a case next to each other",
        )
        if request.case is not None:
            seen.add(request.case)
        cases.append([request])
    return cases


@dataclass(frozen=True)
class Encoded:
    """Token ids of one request: prompt, target, and where the subject's last token is."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    subject_last: int | None


@dataclass(frozen=True)
class EditBatch:
    """Requests that are written together, with their token ids.

    Args:
        requests: The requests, in the order of the stream.
        encoded: Their token ids, one entry a request.
        seed: Everything random that an editor does for this batch starts from here.
    """

    requests: tuple[EditRequest, ...]
    encoded: tuple[Encoded, ...]
    seed: int = 0
    ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        _require(bool(self.requests), "an edit batch needs at least one request")
        _require(
            len(self.requests) == len(self.encoded),
            f"{len(self.requests)} requests but {len(self.encoded)} encodings; "
            "encode every request once",
        )
        object.__setattr__(self, "ids", tuple(request.id for request in self.requests))

    def __len__(self) -> int:
        return len(self.requests)

    def split(self) -> list["EditBatch"]:
        """Return one batch for each request, with the same seed."""
        pairs = zip(self.requests, self.encoded, strict=True)
        return [EditBatch((request,), (encoded,), self.seed) for request, encoded in pairs]
