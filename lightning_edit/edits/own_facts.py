"""Parser of own facts: the fields of :class:`~lightning_edit.types.EditRequest`, checked.

Rows of files (JSON Lines, CSV, Parquet) and of Python (dictionaries, tables) are read by it alike.
It loads no torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Record, shorten
from lightning_edit.types import (
    ASPECT_OF_CRITERION,
    ASPECT_OF_KIND,
    EditRequest,
    Expect,
    Group,
    Probe,
    Rule,
    Triple,
)
from lightning_edit.types.special_tokens import is_special_token
from lightning_edit.types.subject_names import candidates, locate
from lightning_edit.types.subjects import is_word, subject_places

AMBIGUOUS = (
    "ambiguous subject: it stands in several places and the last one is taken; give `subject_start`"
)
INSIDE_WORD = "part of a longer word: the subject stands in its prompt only so; write it as a word"
SUBJECT_FOUND = "subject not given, found in the prompt"
SUBJECT_UNKNOWN = "subject not given and not found; add it for editors that need one"

_FIELDS = (
    "prompt",
    "target",
    "id",
    "subject",
    "old_target",
    "rephrases",
    "probes",
    "subject_start",
    "case",
    "triple",
    "separator",
)
_PROBE = 'a probe, `"probes": [{"kind": "%s", "prompt": "...", "answers": "..."}]`'
_NEIGHBOUR, _CONSEQUENCE = _PROBE % "neighborhood", _PROBE % "one_hop"
#: Names that other tools have for these fields, and what is written here.
_OTHER_NAMES = {
    "answer": "`target`",
    "target_new": "`target`",
    "new_answer": "`target`",
    "ground_truth": "`old_target`",
    "target_true": "`old_target`",
    "rephrase": "`rephrases`, a list",
    "rephrase_prompt": "`rephrases`, a list",
    "paraphrase": "`rephrases`, a list",
    "paraphrases": "`rephrases`, a list",
    "paraphrase_prompts": "`rephrases`, a list",
    "locality": _NEIGHBOUR,
    "locality_inputs": _NEIGHBOUR,
    "neighbors": _NEIGHBOUR,
    "neighborhood": _NEIGHBOUR,
    "neighborhood_prompts": _NEIGHBOUR,
    "portability": _CONSEQUENCE,
    "portability_inputs": _CONSEQUENCE,
}
_PROBE_FIELDS = ("kind", "prompt", "answers", "expect", "path", "old", "group")
_GROUP_FIELDS = ("name", "criterion", "rule", "premises")


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of this format."""
    return "target" in values or ("prompt" in values and "target_new" not in values)


def parse(record: Record, name: str | None = None) -> EditRequest:
    """Parse one record into an edit request; any undocumented field or value is an error.

    A missing subject is taken from the prompt if the prompt contains exactly one name (capitals or
    quotation marks). Otherwise the request has none, and an editor that needs one raises an error.
    Prompts and answers keep white space at their ends (docs/data.md, "What the model reads").

    Args:
        record: A strict record.
        name: Id of a record without an ``id``; ``None``: ``fact-`` and its number.

    Raises:
        DataError: With place, field, expectation and what was got.
    """
    record.allow(_FIELDS, _OTHER_NAMES)
    prompt, target = record.written("prompt"), record.written("target")
    refuse_special_token(record, "target", target)
    if "{}" in prompt:
        record.fail(
            "prompt", "the full text", prompt, "write the subject in the place of {}, as it is read"
        )
    subject = _subject(record, prompt)
    start = _subject_start(record) if subject else None
    if subject is not None and start is None:
        note_place(record, prompt, subject)
    try:
        return EditRequest(
            id=record.optional_text("id") or name or f"fact-{record.where.number}",
            prompt=prompt,
            target=target,
            subject=subject,
            old_target=record.optional_written("old_target"),
            rephrases=record.texts("rephrases"),
            probes=tuple(_probe(probe) for probe in record.children("probes")),
            subject_start=start,
            case=record.optional_text("case"),
            triple=_triple(record, "triple", record.values["triple"])
            if record.has("triple")
            else None,
            separator=record.separator("separator"),
        )
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{record.where}: {error}") from error


def refuse_special_token(record: Record, name: str, target: str) -> None:
    """Refuse a special token as target: no editor can make a model answer with it as text.

    Args:
        record: The record.
        name: The field of the target.
        target: The target.

    Raises:
        DataError: If the target is a special token and nothing else.
    """
    if is_special_token(target):
        record.fail(
            name,
            "a text that a reader can read",
            target,
            "it is a special token, which no reader sees; write the answer itself",
        )


def note_place(record: Record, prompt: str, subject: str) -> None:
    """Note a subject that stands in several places of its prompt, or only inside longer words.

    Args:
        record: The record, which does not say where the subject stands.
        prompt: The prompt.
        subject: The subject, spelled as in the prompt.
    """
    places = subject_places(prompt, subject)
    if len(places) > 1:
        at = ", ".join(map(str, places))
        record.note(AMBIGUOUS, f"{subject!r} at {at} in {prompt!r}")
    if places and not is_word(prompt, places[-1], places[-1] + len(subject)):
        record.note(INSIDE_WORD, f"{subject!r} in {prompt!r}")


def _subject(record: Record, prompt: str) -> str | None:
    subject = record.optional_text("subject")
    if subject is None:
        found = candidates(prompt)
        if len(found) == 1 and found[0] in prompt:
            record.note(SUBJECT_FOUND, f"{found[0]!r} in {prompt!r}")
            return found[0]
        seen = f"{len(found)} names: {', '.join(found)}" if found else "no name"
        record.note(SUBJECT_UNKNOWN, f"{prompt!r} has {seen}")
        return None
    if subject not in prompt:
        at = locate(subject, prompt)
        spelled = (
            "as it is spelled in the prompt" if at is None else repr(prompt[at:][: len(subject)])
        )
        record.fail(
            "subject",
            f"a part of the prompt {shorten(prompt, 60)!r}",
            subject,
            f"write it {spelled}",
        )
    return subject


def _subject_start(record: Record) -> int | None:
    start = record.values.get("subject_start")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        record.fail(
            "subject_start", "a position in the prompt", start, "leave it out to have it found"
        )
    return start


def _probe(record: Record) -> Probe:
    record.allow(_PROBE_FIELDS)
    kind = record.text("kind")
    if kind not in ASPECT_OF_KIND:
        record.fail("kind", f"one of {', '.join(ASPECT_OF_KIND)}", kind, "choose one of them")
    prompt, answers = record.written("prompt"), record.answers("answers")
    if not answers:
        record.fail(
            "answers",
            "a text, or a list of texts",
            record.values.get("answers"),
            "give at least one accepted answer",
        )
    triples = record.items("path", "a list of triples")
    path = tuple(_triple(record, "path", item) for item in triples)
    group = _group(record.child("group")) if record.has("group") else None
    probe = Probe.of(kind, prompt, answers, path, record.optional_written("old"), group)
    expect = record.optional_text("expect")
    if expect is None:
        return probe
    if expect not in get_args(Expect):
        record.fail("expect", f"one of {', '.join(get_args(Expect))}", expect, "or leave it out")
    return replace(probe, expect=cast("Expect", expect))


def _group(record: Record) -> Group:
    record.allow(_GROUP_FIELDS)
    criterion, rule = record.optional_text("criterion"), record.optional_text("rule") or "any"
    if criterion is not None and criterion not in ASPECT_OF_CRITERION:
        known = f"one of {', '.join(ASPECT_OF_CRITERION)}"
        record.fail("criterion", known, criterion, "choose one of them")
    if rule not in get_args(Rule):
        record.fail("rule", f"one of {', '.join(get_args(Rule))}", rule, "or leave it out")
    return Group(record.text("name"), criterion, cast("Rule", rule), record.texts("premises"))


def _triple(record: Record, name: str, item: object) -> Triple:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(x, str) for x in item):
        record.fail(name, "a list of [subject, relation, object]", item, "write three texts")
    return (item[0], item[1], item[2])
