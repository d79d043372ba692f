"""COUNTERFACT parser, for ROME's format (arXiv 2202.05262) and EasyEdit's.

ROME's format has a ``requested_rewrite`` whose prompt has ``{}`` for the subject; EasyEdit's is
flat, with one rephrasing and one locality prompt. EasyEdit's portability and locality splits use
ROME's format with additional blocks.
"""

from collections.abc import Mapping
from typing import Any

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of one of the two COUNTERFACT formats."""
    if isinstance(values.get("requested_rewrite"), dict):
        return True
    nested = any(isinstance(values.get(block), dict) for block in ("portability", "locality"))
    return "target_new" in values and not nested


def parse(record: Record) -> EditRequest:
    """Parse one COUNTERFACT record, of either format, into an edit request.

    Note:
        ``attribute_prompts`` (other subjects of which the new object is already true) and
        ``generation_prompts`` are not used as probes: neither has an answer that an edit should
        keep or give. EasyEdit's ``rephrase_prompt`` is mostly one of ROME's generation prompts, so
        its generalization is not comparable with ROME's.
    """
    return _parse_rome(record) if "requested_rewrite" in record.values else _parse_easyedit(record)


def relations(record: Record) -> list[str | None]:
    """Return the relation of the record's one edit, if given."""
    rewrite = record.values.get("requested_rewrite")
    found = rewrite.get("relation_id") if isinstance(rewrite, dict) else None
    return [found if isinstance(found, str) else None]


def _parse_rome(record: Record) -> EditRequest:
    rewrite = record.child("requested_rewrite")
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if template.count("{}") != 1:
        rewrite.fail(
            "prompt", "text with one {}", template, "write {} where the subject stands, once"
        )
    target = rewrite.child("target_new").text("str")
    old = rewrite.child("target_true").text("str")
    builder = ProbeBuilder(record)
    for prompt in record.texts("neighborhood_prompts"):
        builder.add("neighborhood", prompt, (old,))
    for prompt in record.texts("distracting_neighborhood_prompts"):
        builder.add("distracting_neighbor", prompt, (old,))
    if record.has("unrelated_relation"):
        other = record.child("unrelated_relation")
        builder.add("other_attribution", other.probe_text("question"), other.answers("object"))
    if record.has("portability"):
        hop = record.child("portability")
        builder.add("one_hop", hop.probe_text("New Question"), hop.answers("New Answer"))
    for alias in record.answers("alternative_subject"):
        builder.add("subject_alias", template.replace("{}", alias), (target,))
    return make_request(
        builder,
        prompt=template.replace("{}", subject),
        target=target,
        subject=subject,
        subject_start=template.index("{}"),
        old_target=old,
        rephrases=record.texts("paraphrase_prompts"),
        fallback_id=_id(record),
    )


def _parse_easyedit(record: Record) -> EditRequest:
    builder = ProbeBuilder(record)
    answers = record.answers("locality_ground_truth")
    for prompt in record.texts("locality_prompt"):
        builder.add("neighborhood", prompt, answers)
    old_answers = record.answers("ground_truth")
    return make_request(
        builder,
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject"),
        old_target=old_answers[0] if old_answers else None,
        rephrases=record.texts("rephrase_prompt"),
        fallback_id=_id(record),
    )


def _id(record: Record) -> str:
    case = record.values.get("case_id")
    if case is None:
        return f"counterfact-{record.where.number}"
    if isinstance(case, bool) or not isinstance(case, int | str):
        record.fail("case_id", "a number or text", case, "number the cases, or leave it out")
    return f"counterfact-{case}"
