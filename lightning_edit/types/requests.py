"""Edit requests, and batches of them with token ids.

Nothing here imports torch, so data files can be read and checked without loading it.

Axis names used in the whole project: ``n`` -- edits in a batch; ``r`` -- rows (an edit under one
context template); ``t`` -- token positions; ``d`` -- hidden width; ``d_in``/``d_out`` -- a weight
acts as ``y = W k`` with W of shape (d_out, d_in); ``v`` -- vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_edit.types.probes import Probe, Triple, require
from lightning_edit.types.subjects import locate_subject

Protocol = Literal["single", "batch", "sequential"]
_OPTIONAL_TEXTS = ("subject", "old_target", "case", "separator")


@dataclass(frozen=True)
class EditRequest:
    """Edit request: one fact to write into a language model, with the probes that test it.

    Args:
        id: Unique name of the request inside its stream.
        prompt: Text that ends where the answer begins, subject included ("The capital of France
            is").
        target: The answer that the edited model should give.
        subject: The entity inside ``prompt``; ``None`` for editors that need none.
        old_target: The answer before the edit, of the model or of the data set.
        rephrases: Other wordings of the prompt; each becomes a ``rephrase`` probe.
        probes: Locality, portability and further probes.
        subject_start: Character offset of the subject in the prompt; ``None``: the last place where
            it stands as a word.
        case: Requests with one case name belong together (several edits behind one multi-hop
            question): they are adjacent and are written in one step.
        triple: The new fact in the names of a knowledge graph, if they differ from the texts.
        separator: Text between prompt and answer, here and in the probes; ``None``: the data
            module's, else by rule (docs/data.md).

    Raises:
        ValueError: On values that are not text, empty texts, or a subject that is not in the
            prompt.
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
    separator: str | None = None

    def __post_init__(self) -> None:
        self._require_texts()
        require(bool(self.id), "a request needs a non-empty id")
        require(
            bool(self.prompt.strip()),
            f"request {self.id}: `prompt` is empty; give the text to edit",
        )
        require(
            bool(self.target.strip()), f"request {self.id}: `target` is empty; give the new answer"
        )
        if self.subject is None:
            return
        start = self.subject_start
        if start is None:
            place = locate_subject(self.prompt, self.subject)
            start = -1 if place is None else place
        found = (
            bool(self.subject) and self.prompt[start : start + len(self.subject)] == self.subject
        )
        require(
            start >= 0 and found,
            f"request {self.id}: subject {self.subject!r} does not stand in the prompt "
            f"{self.prompt!r}; "
            "write it there as it is spelled in `subject`",
        )
        object.__setattr__(self, "subject_start", start)

    def _require_texts(self) -> None:
        for name in ("id", "prompt", "target", *_OPTIONAL_TEXTS):
            value = getattr(self, name)
            require(
                isinstance(value, str) or (value is None and name in _OPTIONAL_TEXTS),
                f"request {self.id}: expected text as `{name}`, got {value!r}; put it in quotes",
            )
        for name in ("rephrases", "probes"):
            value = getattr(self, name)
            require(
                isinstance(value, list | tuple),
                f"request {self.id}: expected a list as `{name}`, got {value!r}; "
                "put it in a list, also where it is only one",
            )
            object.__setattr__(self, name, tuple(value))
        odd = [value for value in self.rephrases if not isinstance(value, str)]
        require(not odd, f"request {self.id}: expected texts in `rephrases`, got {odd[:1]}")

    @property
    def subject_end(self) -> int | None:
        """Character offset of the subject's end in the prompt; ``None`` without a subject."""
        if self.subject is None or self.subject_start is None:
            return None
        return self.subject_start + len(self.subject)

    def all_probes(self) -> Iterator[Probe]:
        """Yield all probes: the edit itself (``rewrite``), its rephrasings, and the others."""
        yield Probe("rewrite", self.prompt, (self.target,), "target")
        for rephrase in self.rephrases:
            yield Probe("rephrase", rephrase, (self.target,), "target")
        yield from self.probes

    def to(self, *args: object, **kwargs: object) -> "EditRequest":
        """Return the request unchanged on a device transfer: it is text, without tensors.

        Lightning calls ``to`` of objects that have one; it would traverse a dataclass without it.

        Args:
            *args: As for tensors, not used.
            **kwargs: As for tensors, not used.
        """
        return self

    def to_dict(self) -> dict[str, Any]:
        """Serialise the request to plain containers, for JSON."""
        record = asdict(self)
        if self.separator is None:
            # Not there in runs of earlier versions, which still resume.
            del record["separator"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EditRequest":
        """Build a request from the output of :meth:`to_dict`."""
        values = dict(record)
        values["rephrases"] = tuple(values.get("rephrases", ()))
        triple = values.get("triple")
        values["triple"] = None if triple is None else tuple(triple)
        values["probes"] = tuple(Probe.from_dict(probe) for probe in values.get("probes", ()))
        return cls(**values)


def cases_of(requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
    """Group requests by case; a request without a case is a case of its own.

    Args:
        requests: Requests, those of one case adjacent.

    Returns:
        Cases in order.

    Raises:
        ValueError: If requests of one case are not adjacent.
    """
    cases: list[list[EditRequest]] = []
    seen: set[str] = set()
    for request in requests:
        if request.case is not None and cases and cases[-1][0].case == request.case:
            cases[-1].append(request)
            continue
        require(
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
    """Token ids of one request: prompt, target, and index of the subject's last token.

    Args:
        prompt_ids: The prompt.
        target_ids: The target.
        subject_last: Index of the subject's last token; ``None`` without a subject.
        plain: The same request as plain text, where an edit is written for a chat template and for
            plain text.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    subject_last: int | None
    plain: "Encoded | None" = None

    @property
    def forms(self) -> "tuple[Encoded, ...]":
        """The request in every form in which it is written: one row of a loss each."""
        return (self,) if self.plain is None else (self, self.plain)


@dataclass(frozen=True)
class EditBatch:
    """Batch of edit requests that are written together, with their token ids.

    Args:
        requests: The requests, in stream order.
        encoded: Their token ids, one entry per request.
        seed: Seed of everything random in this batch's edit.
    """

    requests: tuple[EditRequest, ...]
    encoded: tuple[Encoded, ...]
    seed: int = 0
    ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        require(bool(self.requests), "an edit batch needs at least one request")
        require(
            len(self.requests) == len(self.encoded),
            f"{len(self.requests)} requests but {len(self.encoded)} encodings; "
            "encode every request once",
        )
        object.__setattr__(self, "ids", tuple(request.id for request in self.requests))

    def __len__(self) -> int:
        return len(self.requests)

    def split(self) -> list["EditBatch"]:
        """Split into batches of one request each, with the same seed."""
        pairs = zip(self.requests, self.encoded, strict=True)
        return [EditBatch((request,), (encoded,), self.seed) for request, encoded in pairs]

    def cases(self) -> list["EditBatch"]:
        """Split into batches of one case each, with the same seed; see :func:`cases_of`."""
        found, start = [], 0
        for case in cases_of(self.requests):
            stop = start + len(case)
            found.append(EditBatch(tuple(case), self.encoded[start:stop], self.seed))
            start = stop
        return found

    def to(self, *args: object, **kwargs: object) -> "EditBatch":
        """Return the batch unchanged on a device transfer: text and numbers, without tensors.

        Args:
            *args: As for tensors, not used.
            **kwargs: As for tensors, not used.
        """
        return self
