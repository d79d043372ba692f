"""RippleEdits parser (arXiv 2307.12976): edits with tests by six criteria and their conditions.

The files popular, random and recent have one format. A record states its edit as a sentence ("The
name of the capital city of X is Y."); prompt, target and subject have to be located in it.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest, Group, Rule, Triple

NO_TARGET = "where the answer begins cannot be told, record left out"


class Criterion(NamedTuple):
    """RippleEdits criterion: its score and its kind of probe.

    Args:
        name: Name of its score, see :data:`~lightning_edit.types.ASPECT_OF_CRITERION`.
        kind: Kind of its probes.
    """

    name: str
    kind: str


#: Criteria by field; the files and the paper spell two of them differently.
CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "Logical_Generalization": Criterion("logical_generalization", "reversed_relation"),
        "Compositionality_I": Criterion("compositionality_i", "one_hop"),
        "Compositionality_II": Criterion("compositionality_ii", "one_hop"),
        "Subject_Aliasing": Criterion("subject_aliasing", "subject_alias"),
        "Relation_Specificity": Criterion("relation_specificity", "relation_specificity"),
        "Relation_Specifity": Criterion("relation_specificity", "relation_specificity"),
        "Forgetfulness": Criterion("forgetfulness", "forgetfulness"),
        "Preservation": Criterion("forgetfulness", "forgetfulness"),
    }
)

# Patterns that locate the subject in a sentence of the files, the specific before the general.
_SUBJECTS = (
    re.compile(r"^(.+) (?:follows|is followed by)$"),
    re.compile(r" which (.+) (?:is associated with|is a member of|plays in|is part of) is$"),
    re.compile(r" which (.+) is the capital of is$"),
    re.compile(r"^The number of children (.+) has is$"),
    re.compile(r"^The name of the award (.+) won is$"),
    re.compile(r" (?:position held by|currency in|performed in) (.+) is$"),
    re.compile(
        r"^The (?:names? of the )?(?:country of citizenship|head of (?:government|state)"
        r"|(?:place|date) of (?:birth|death|burial)|field of work|[a-z ]+?) of (.+) (?:is|are)$"
    ),
)
_VERB = re.compile(r"^(.+ (?:is followed by|follows|is|are)) (.+)$")


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of RippleEdits."""
    return isinstance(values.get("edit"), dict) and any(name in values for name in CRITERIA)


def parse(record: Record) -> EditRequest | None:
    """Parse one RippleEdits record; ``None`` if its sentence has no clear prompt and target.

    The target is the label that one of the record's questions gives to the edit's ``target_id``;
    else what the sentence does not share with that of the previous fact; else what follows its
    verb. A test's questions keep its rule (``OR``, ``AND``), and its conditions become premises.

    Note:
        If a question has several answers (siblings), the authors require all of them in 30
        characters of generated text; here one of them, or an alias, is accepted. They search the
        text for an answer; here the text must be the answer.
    """
    edit = record.child("edit")
    sentence = _sentence(edit)
    previous = _previous_sentence(edit)
    split = _split_sentence(record, edit, sentence, previous)
    if split is None:
        record.note(NO_TARGET, sentence)
        return None
    prompt, target = split
    old = None
    if previous is not None and previous.startswith(f"{prompt} "):
        old = previous[len(prompt) :].strip()
    builder = ProbeBuilder(record)
    premises: dict[tuple[str, tuple[str, ...]], str] = {}
    for field, criterion in CRITERIA.items():
        for number, test in enumerate(record.children(field), start=1):
            _add_test(builder, test, f"{field} {number}", criterion, premises)
    return make_request(
        builder,
        prompt=prompt,
        target=target,
        subject=_subject(prompt),
        old_target=old,
        fallback_id=f"rippleedits-{record.where.number}",
        triple=_triple(edit, "target_id"),
    )


def _add_test(
    builder: ProbeBuilder,
    test: Record,
    name: str,
    criterion: Criterion,
    premises: dict[tuple[str, tuple[str, ...]], str],
) -> None:
    premise_names = []
    for query in test.children("condition_queries"):
        prompt, answers = query.probe_text("prompt"), _answers(query)
        if prompt is None or not answers:
            continue
        if (prompt, answers) not in premises:
            premises[prompt, answers] = f"condition {len(premises) + 1}"
            group = Group(premises[prompt, answers])
            builder.add("premise", prompt, answers, _query_triple(query), group=group)
        premise_names.append(premises[prompt, answers])
    group = Group(name, criterion.name, _rule(test), tuple(dict.fromkeys(premise_names)))
    for query in test.children("test_queries"):
        prompt = query.probe_text("prompt")
        builder.add(criterion.kind, prompt, _answers(query), _query_triple(query), group=group)


def _triple(values: Record, target: str) -> Triple | None:
    """Return the triple of subject, relation and object ids, if all are given."""
    found = values.values.get(target)
    names = (values.values.get("subject_id"), values.values.get("relation"), found)
    subject, relation, obj = (name if isinstance(name, str) else None for name in names)
    return (subject, relation, obj) if subject and relation and obj else None


def _query_triple(query: Record) -> list[Triple]:
    """Return the triple that a one-hop question asks for, if it has one answer."""
    ids = query.values.get("target_ids")
    if query.values.get("query_type") == "two_hop" or not isinstance(ids, list) or len(ids) != 1:
        return []
    triple = _triple(Record({**query.values, "target": ids[0]}, query.where), "target")
    return [] if triple is None else [triple]


def _rule(test: Record) -> Rule:
    condition = (test.optional_text("test_condition") or "OR").upper()
    if condition not in ("OR", "AND"):
        test.fail("test_condition", "OR or AND", condition, "leave it out for OR")
    return "any" if condition == "OR" else "all"


def _answers(query: Record) -> tuple[str, ...]:
    """Return accepted answers of a question, names before aliases."""
    listed = query.children("answers")
    names = [text for answer in listed for text in answer.answers("value")]
    aliases = [text for answer in listed for text in answer.answers("aliases")]
    return tuple(dict.fromkeys((*names, *aliases)))


def _sentence(fact: Record) -> str:
    return fact.text("prompt").removesuffix(".").rstrip()


def _previous_sentence(edit: Record) -> str | None:
    names = [name for name in ("previous_fact", "original_fact") if edit.has(name)]
    return _sentence(edit.child(names[0])) if names else None


def _split_sentence(
    record: Record, edit: Record, sentence: str, previous: str | None
) -> tuple[str, str] | None:
    """Split the edit's sentence into prompt and target; ``None`` if that is ambiguous."""
    target_id = edit.values.get("target_id")
    for label in _target_labels(record, target_id):
        # The sentence's full stop was removed, and with it that of such a label.
        target = label.removesuffix(".")
        if sentence.endswith(f" {target}"):
            return sentence[: -len(target)].rstrip(), label
    found = _VERB.match(sentence)
    if previous is not None:
        # Two targets may share a prefix, so split at a verb that both facts share.
        shared = _VERB.match(previous)
        if found and shared and found[1] != shared[1]:
            found = None
    return None if found is None else (found[1], found[2])


def _target_labels(record: Record, target_id: object) -> Iterator[str]:
    """Yield labels of the edit's target, from the answers of the record's questions."""
    for field in CRITERIA:
        for test in record.children(field):
            for query in (*test.children("test_queries"), *test.children("condition_queries")):
                second = query.has("second_hop_target_ids")
                ids = query.values.get("second_hop_target_ids" if second else "target_ids")
                ids = ids if isinstance(ids, list) else [ids]
                for found, answer in zip(ids, query.children("answers"), strict=False):
                    if found == target_id and answer.answers("value"):
                        yield answer.answers("value")[0]


def _subject(prompt: str) -> str | None:
    found = (pattern.search(prompt) for pattern in _SUBJECTS)
    return next((match[1] for match in found if match), None)
