"""Findings of ``lightning-edit data check``: conflicts, duplicates, texts that deserve a look."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_edit.datamodules.conflicts import conflicts_of, normalised
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
_LINES = (
    "line break inside an answer; a generated text is read to the end of its line, so such an "
    "answer is never right by @gen"
)
_UNSEEN = (
    "character that looks like a blank or like nothing (control, zero width, no-break space) in a "
    "prompt or target; a user who types another one asks another question"
)
_UNSEEN_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u200b\u200e\u200f\u202f\u2060\ufeff]"
)

# Records by prompt and target.
_Prompts = dict[str, dict[str, list[tuple[int, EditRequest]]]]


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
    prompts: _Prompts = defaultdict(lambda: defaultdict(list))
    same = []
    for request, where in zip(parsed_file.requests, parsed_file.locations, strict=True):
        entry = (where.number, request)
        prompts[normalised(request.prompt)][normalised(request.target)].append(entry)
        if request.old_target is not None and normalised(request.target) == normalised(
            request.old_target
        ):
            same.append(f"record {where.number}: {request.target!r}")
    yield from _make_finding(
        "conflicting edits (one fact, several targets)", _conflicts(parsed_file)
    )
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


def _conflicts(parsed_file: ParsedFile) -> list[str]:
    numbers = [where.number for where in parsed_file.locations]
    return [
        f"records {_join_numbers([numbers[n] for n in one.members])}: {one}"
        for one in conflicts_of(parsed_file.requests, parsed_file.relations)
    ]


def _duplicates(prompts: _Prompts) -> list[str]:
    return [
        f"records {_join_numbers([number for number, _ in entries])}: {entries[0][1].prompt!r}"
        for targets in prompts.values()
        for entries in targets.values()
        if len(entries) > 1
    ]


def _join_numbers(numbers: Sequence[int]) -> str:
    more = f" +{len(numbers) - _MAX_EXAMPLES} more" if len(numbers) > _MAX_EXAMPLES else ""
    return ", ".join(map(str, numbers[:_MAX_EXAMPLES])) + more


def _text_findings(parsed_file: ParsedFile) -> Iterable[Finding]:
    templates, joined, inside, lines, unseen = [], [], [], [], []
    for request, where in zip(parsed_file.requests, parsed_file.locations, strict=True):
        templates += [
            f"record {where.number}: {fragment!r} in {probe.prompt!r}"
            for probe in request.all_probes()
            if (fragment := template_fragment(probe.prompt)) is not None
        ]
        lines += [
            f"record {where.number}: {answer!r}"
            for answer in dict.fromkeys(a for p in request.all_probes() for a in p.answers)
            if "\n" in answer.strip()
        ]
        prompt, target = request.prompt, request.target
        unseen += [
            f"record {where.number}: {text!r}"
            for text in (prompt, target)
            if _UNSEEN_CHARACTERS.search(text)
        ]
        if (token := special_token_in(target)) is not None:
            inside.append(f"record {where.number}: {token!r} in {target!r}")
        spaced = prompt.endswith(" ") or target.startswith(" ")
        if request.separator is None and not spaced and not separator_between(prompt, target):
            joined.append(f"record {where.number}: {prompt[-40:]!r} + {target[:40]!r}")
    yield from _make_finding(_TEMPLATE, templates)
    yield from _make_finding(_INSIDE, inside)
    yield from _make_finding(_LINES, lines)
    yield from _make_finding(_UNSEEN, unseen)
    yield from _make_finding(_JOINED, joined)
