"""Conflicting edits: facts with several targets, and premises of one case that another case edits.

A model that is edited with all of them at once can hold one answer to a fact. Nothing here imports
torch, so that ``lightning-edit data check`` runs without it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_edit.types import EditRequest

_Fact = tuple[str, str]
_REMEDY = (
    "keep the first of them only with conflicts='drop' (--data.conflicts drop), or edit each case "
    "alone (--protocol single)"
)


@dataclass(frozen=True)
class Conflict:
    """One fact that several requests edit to different targets.

    Args:
        fact: The fact for a reader: the prompt, or subject and relation.
        targets: The different targets, in the order of the requests.
        members: Indices of all requests about the fact, in order.
    """

    fact: str
    targets: tuple[str, ...]
    members: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.fact!r} → {', '.join(map(repr, self.targets))}"


def conflicts_of(
    requests: Sequence[EditRequest], relations: Sequence[str | None] | None = None
) -> list[Conflict]:
    """Return the conflicts among requests that are edited together.

    Two requests are about one fact if they have the same prompt, or the same subject and relation.
    Letter case and white space make no difference, in targets neither.

    Args:
        requests: The requests.
        relations: Relation of each, ``None`` where a record names none; ``None``: of no request.

    Returns:
        One conflict for each group of requests, in order of the first of them.
    """
    facts: dict[_Fact, list[int]] = defaultdict(list)
    for number, keys in enumerate(_facts(requests, relations)):
        for key in keys:
            facts[key].append(number)
    found: dict[tuple[int, ...], Conflict] = {}
    # Requests of one prompt often share subject and relation too; a group is named once.
    for (relation, _), members in facts.items():
        targets: dict[str, str] = {}
        for number in members:
            targets.setdefault(normalised(requests[number].target), requests[number].target)
        if len(targets) > 1:
            first = requests[members[0]]
            fact = f"{first.subject} ({relation})" if relation else first.prompt
            found.setdefault(
                tuple(members), Conflict(fact, tuple(targets.values()), tuple(members))
            )
    return sorted(found.values(), key=lambda one: one.members)


def overwritten_premises(cases: Sequence[Sequence[EditRequest]]) -> list[tuple[int, int]]:
    """Return which cases build on a fact that another case edits to something else.

    Answers that are expected of such a case (multi-hop questions of MQuAKE) no longer follow once
    both are edited. A premise is a probe of that kind; it is edited if its text is the prompt or a
    rephrasing of a request, and its answers do not have the target.

    Args:
        cases: Requests by case.

    Returns:
        Pairs of the case with the premise and the case with the edit, by index, each once.
    """
    edits: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, case in enumerate(cases):
        for text, target in _written(case):
            edits[text].append((number, target))
    found: dict[tuple[int, int], None] = {}
    for number, case in enumerate(cases):
        for text, answers in _premises(case):
            for other, target in edits.get(text, ()):
                if other != number and target not in answers:
                    found[number, other] = None
    return list(found)


def conflict_warnings(
    cases: Sequence[Sequence[EditRequest]], relations: Mapping[str, str | None]
) -> list[str]:
    """Say how many requests cannot hold together; empty if all can.

    Args:
        cases: Requests by case.
        relations: Relations by the id of a request.
    """
    requests = [request for case in cases for request in case]
    found = conflicts_of(requests, [relations.get(one.id) for one in requests])
    warnings = []
    if found:
        members = {number for one in found for number in one.members}
        ids = ", ".join(requests[number].id for number in found[0].members[:3])
        warnings.append(
            f"facts with several targets: {len(found)}, in {len(members)} of {len(requests)} "
            f"edits, such as {found[0]} ({ids}). Edited together, a fact can have one, and "
            f"the other edits score as failed; {_REMEDY}"
        )
    if overwritten := overwritten_premises(cases):
        built = {case for case, _ in overwritten}
        case, other = (cases[number][0] for number in overwritten[0])
        warnings.append(
            f"cases that build on a fact which another case edits: {len(built)} of {len(cases)}, "
            "such as "
            f"{case.case or case.id} on one of {other.case or other.id}. Edited together, what is "
            f"expected of them no longer follows; {_REMEDY}"
        )
    return warnings


def without_conflicts(
    cases: Sequence[Sequence[EditRequest]], relations: Mapping[str, str | None]
) -> list[int]:
    """Return the cases that can be edited together, the first of each conflict included.

    A case is left out if it edits a fact to another target than a case that is kept, or by itself
    to two; or if one of the two edits a premise of the other.

    Args:
        cases: Requests by case, in order; a case is kept or left out as a whole.
        relations: Relations by the id of a request.

    Returns:
        Indices of the cases that are kept.
    """
    targets: dict[_Fact, str] = {}
    written: dict[str, str] = {}
    premises: dict[str, list[frozenset[str]]] = defaultdict(list)
    kept = []
    for number, case in enumerate(cases):
        named = [relations.get(one.id) for one in case]
        own: dict[_Fact, str] = {}
        fits = True
        for request, keys in zip(case, _facts(case, named), strict=True):
            target = normalised(request.target)
            for key in keys:
                fits &= own.setdefault(key, target) == target == targets.get(key, target)
        for text, target in _written(case):
            fits &= all(target in answers for answers in premises.get(text, ()))
        for text, answers in _premises(case):
            fits &= text not in written or written[text] in answers
        if fits:
            kept.append(number)
            targets |= own
            written |= _written(case)
            for text, answers in _premises(case):
                premises[text].append(answers)
    return kept


def normalised(text: str) -> str:
    """Return a text without differences of letter case and white space.

    Args:
        text: A prompt, a subject or a target.
    """
    return " ".join(text.casefold().split())


def _facts(
    requests: Sequence[EditRequest], relations: Sequence[str | None] | None
) -> list[list[_Fact]]:
    named = [None] * len(requests) if relations is None else relations
    found = []
    for request, relation in zip(requests, named, strict=True):
        keys = [("", normalised(request.prompt))]
        if relation and request.subject:
            keys.append((relation, normalised(request.subject)))
        found.append(keys)
    return found


def _written(case: Sequence[EditRequest]) -> Iterator[tuple[str, str]]:
    """Yield the texts whose answer a case edits, with the target."""
    for request in case:
        for text in (request.prompt, *request.rephrases):
            yield normalised(text), normalised(request.target)


def _premises(case: Sequence[EditRequest]) -> Iterator[tuple[str, frozenset[str]]]:
    for request in case:
        for probe in request.probes:
            if probe.kind == "premise":
                yield normalised(probe.prompt), frozenset(map(normalised, probe.answers))
