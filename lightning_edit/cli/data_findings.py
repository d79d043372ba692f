"""Findings of ``lightning-edit data check``: conflicts, duplicates, texts that deserve a look."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_edit.datamodules.formats import ParsedFile
from lightning_edit.models.prompt_format import separator_between
from lightning_edit.storage.record import shorten
from lightning_edit.types import EditRequest
from lightning_edit.types.special_tokens import special_token_in, template_fragment

_MAX_EXAMPLES = 3
_TEMPLATE = (
    "special token or chat template in a prompt; write what the user says and let the model's own "
    "template be put around it (--lm_chat true, system message: --lm_system)"
)
_INSIDE = "special token inside a target; a model with this token refuses the edit, so remove it"
_JOINED = (
    "prompt and answer joined without a blank by rule (script, quote or white space at the "
    "prompt's end); `separator` says otherwise"
)

# Records by fact and by target; a fact is (relation, subject) or ("", prompt).
_Facts = dict[tuple[str, str], dict[str, list[tuple[int, EditRequest]]]]


@dataclass(frozen=True)
class Finding:
    """Warning about one kind of oddity in a data file.

    Args:
        what: The oddity.
        count: Number of occurrences.
        examples: The first few, each with its record number.
    """

    what: str
    count: int
    examples: tuple[str, ...]


def findings_of(parsed_file: ParsedFile) -> Iterable[Finding]:
    """Yield what deserves a look in a data file; it can be used in spite of it.

    Args:
        parsed_file: The file.
    """
    prompts: _Facts = defaultdict(lambda: defaultdict(list))
    same = []
    for request, where, relation in zip(
        parsed_file.requests, parsed_file.locations, parsed_file.relations, strict=True
    ):
        entry = (where.number, request)
        prompts["", _normalise(request.prompt)][request.target].append(entry)
        if relation and request.subject:
            prompts[relation, _normalise(request.subject)][request.target].append(entry)
        if request.old_target is not None and _normalise(request.target) == _normalise(
            request.old_target
        ):
            same.append(f"record {where.number}: {request.target!r}")
    yield from _make_finding("conflicting edits (one fact, several targets)", _conflicts(prompts))
    yield from _make_finding("duplicate prompts (with one target)", _duplicates(prompts))
    yield from _make_finding("target equal to the old target", same)
    for aspect in ("generalization", "locality"):
        have = [any(p.aspect == aspect for p in r.all_probes()) for r in parsed_file.requests]
        missing = [
            where.number for where, has in zip(parsed_file.locations, have, strict=True) if not has
        ]
        if len(missing) < len(have):
            yield from _make_finding(
                f"no {aspect} probe", [f"record {number}" for number in missing]
            )
    yield from _text_findings(parsed_file)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for note in parsed_file.notes:
        by_kind[note.kind].append(f"record {note.number}: {note.detail}")
    for kind, details in by_kind.items():
        yield from _make_finding(kind, details)


def _make_finding(what: str, details: Sequence[str]) -> Iterable[Finding]:
    if details:
        yield Finding(
            what, len(details), tuple(shorten(text, 160) for text in details[:_MAX_EXAMPLES])
        )


def _conflicts(facts: _Facts) -> list[str]:
    # Two records with one prompt also share subject and relation; report a group of records once.
    found: dict[tuple[int, ...], str] = {}
    for (relation, _), targets in facts.items():
        if len(targets) < 2:
            continue
        entries = sorted((entry for group in targets.values() for entry in group), key=_number)
        records = tuple(number for number, _ in entries)
        first = entries[0][1]
        fact = f"{first.subject} ({relation})" if relation else first.prompt
        answers = ", ".join(map(repr, targets))
        found.setdefault(records, f"records {_join_numbers(records)}: {fact!r} → {answers}")
    return list(found.values())


def _duplicates(facts: _Facts) -> list[str]:
    return [
        f"records {_join_numbers([number for number, _ in entries])}: {entries[0][1].prompt!r}"
        for (relation, _), targets in facts.items()
        for entries in targets.values()
        if not relation and len(entries) > 1
    ]


def _number(entry: tuple[int, EditRequest]) -> int:
    return entry[0]


def _join_numbers(numbers: Sequence[int]) -> str:
    more = f" +{len(numbers) - _MAX_EXAMPLES} more" if len(numbers) > _MAX_EXAMPLES else ""
    return ", ".join(map(str, numbers[:_MAX_EXAMPLES])) + more


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _text_findings(parsed_file: ParsedFile) -> Iterable[Finding]:
    templates, joined, inside = [], [], []
    for request, where in zip(parsed_file.requests, parsed_file.locations, strict=True):
        templates += [
            f"record {where.number}: {fragment!r} in {probe.prompt!r}"
            for probe in request.all_probes()
            if (fragment := template_fragment(probe.prompt)) is not None
        ]
        prompt, target = request.prompt, request.target
        if (token := special_token_in(target)) is not None:
            inside.append(f"record {where.number}: {token!r} in {target!r}")
        spaced = prompt.endswith(" ") or target.startswith(" ")
        if request.separator is None and not spaced and not separator_between(prompt, target):
            joined.append(f"record {where.number}: {prompt[-40:]!r} + {target[:40]!r}")
    yield from _make_finding(_TEMPLATE, templates)
    yield from _make_finding(_INSIDE, inside)
    yield from _make_finding(_JOINED, joined)
