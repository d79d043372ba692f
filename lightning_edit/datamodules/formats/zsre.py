"""zsRE parser: question answering as prepared for MEND (arXiv 2110.11309), with EasyEdit's splits.

``src`` is the prompt and ``alt`` its new answer; ``rephrase`` a rephrasing; ``loc`` an unrelated
Natural Questions query. EasyEdit's portability splits add a one-hop question, an inverse question,
or an alias of the subject.
"""

from collections.abc import Mapping
from typing import Any

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of zsRE."""
    return "src" in values


def parse(record: Record) -> EditRequest | None:
    """Parse one zsRE record into an edit request; ``None`` if it has no new answer.

    Note:
        The locality prompt keeps its "nq question: " and gets a question mark, as in the code of
        ROME and MEMIT. The new answer is ``alt``; a record with an empty ``alt`` is skipped, as in
        EasyEdit (MEND's training file has some). The old answer is the first of ``answers``, or
        ``pred`` without them.
    """
    prompt = record.text("src")
    alt = record.values.get("alt")
    if isinstance(alt, str) and not alt.strip():
        record.note("no new answer, record left out", prompt)
        return None
    target = record.text("alt")
    # The inverse-relation split lists several names for some subjects; the first is the main one.
    listed = record.texts("subject") if isinstance(record.values.get("subject"), list) else ()
    names = listed or (record.text("subject"),)
    old_answers = (*record.answers("answers"), *record.answers("pred"))
    builder = ProbeBuilder(record)
    builder.add(
        "natural_question", _question(record.optional_text("loc")), record.answers("loc_ans")
    )
    if record.has("portability"):
        hop = record.child("portability")
        builder.add("one_hop", hop.probe_text("New Question"), hop.answers("New Answer"))
    builder.add("reversed_relation", record.optional_text("inverse question"), names)
    builder.add("subject_alias", record.optional_text("alter_subject_question"), (target,))
    return make_request(
        builder,
        prompt=prompt,
        target=target,
        subject=names[0],
        old_target=old_answers[0] if old_answers else None,
        rephrases=record.texts("rephrase"),
        fallback_id=f"zsre-{record.where.number}",
    )


def _question(text: str | None) -> str | None:
    return text if text is None or text.endswith("?") else f"{text}?"
