"""KnowEdit parser (arXiv 2401.01286): edits with portability and locality probes by kind."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest

#: KnowEdit's names of probe kinds mapped to ours, by block of the record.
KINDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "portability": {
            "Reasoning": "one_hop",
            "Logical_Generalization": "reversed_relation",
            "Subject_Aliasing": "subject_alias",
        },
        "locality": {
            "Relation_Specificity": "relation_specificity",
            "Forgetfulness": "forgetfulness",
        },
    }
)


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of KnowEdit."""
    blocks = any(block in values for block in KINDS)
    if blocks and ("prompt" in values or "text" in values) and "target" not in values:
        return True
    # A record without probes; EasyEdit's COUNTERFACT has other fields.
    others = ("case_id", "locality_prompt", "requested_rewrite")
    return {"prompt", "target_new"} <= values.keys() and not any(name in values for name in others)


def parse(record: Record) -> EditRequest:
    """Parse one KnowEdit record into an edit request.

    ``ground_truth`` of a question is a text, a list, or a list of lists of aliases: all of them are
    accepted answers. The rephrasing is called ``rephrase_prompt`` or ``rephrase``, by file; the
    WikiBio part calls prompt, target and subject ``text``, ``labels`` and ``concept``.
    """
    builder = ProbeBuilder(record)
    for block, kinds in KINDS.items():
        if not record.has(block):
            continue
        questions = record.child(block)
        questions.allow(tuple(kinds))
        for name, kind in kinds.items():
            for question in questions.children(name):
                builder.add(kind, _prompt(question), question.answers("ground_truth"))
    old_answers = record.answers("ground_truth")
    return make_request(
        builder,
        prompt=record.text("prompt", "text"),
        target=record.text("target_new", "labels"),
        subject=record.text("subject", "concept"),
        old_target=old_answers[0] if old_answers else None,
        rephrases=record.texts("rephrase_prompt") or record.texts("rephrase"),
        fallback_id=f"knowedit-{record.where.number}",
    )


def _prompt(question: Record) -> str | None:
    # Questions of WikiBio hold their one prompt in a list.
    listed = question.texts("prompt") if isinstance(question.values.get("prompt"), list) else ()
    if len(listed) > 1:
        question.fail("prompt", "one text", listed, "make each text a question of its own")
    return listed[0] if listed else question.probe_text("prompt")
