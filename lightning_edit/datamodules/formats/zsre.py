"""zsRE question answering, as prepared for MEND (arXiv 2110.11309) and extended by EasyEdit.

``src`` is the edit and ``alt`` its new answer; ``rephrase`` the other wording; ``loc`` an unrelated
Natural Questions query. EasyEdit's portability splits add a one-hop question, an inverse one, or
another name of the subject.
"""

from collections.abc import Mapping
from typing import Any

from lightning_edit.datamodules.formats.record import Record
from lightning_edit.datamodules.formats.requests import Draft, make_request
from lightning_edit.types import EditRequest


def recognises(values: Mapping[str, Any]) -> bool:
    """Say whether an object has the fields of this form."""
    return "src" in values


def parse(record: Record) -> EditRequest | None:
    """Turn one record into a request; ``None`` where it has no new answer.

    Note:
        The locality prompt keeps its "nq question: " and gets a question mark, which is what the
        code of ROME and MEMIT feeds to the model. The new answer is ``alt``; a record whose ``alt``
        is empty is left out, as in EasyEdit (MEND's training file has some). The old answer is the
        first of ``answers``, or ``pred`` without them.
    """
    prompt = record.text("src")
    alt = record.values.get("alt")
    if isinstance(alt, str) and not alt.strip():
        record.note("no new answer, record left out", prompt)
        return None
    target = record.text("alt")
    # The inverse-relation split lists several names for some subjects; the first is the usual one.
    listed = record.texts("subject") if isinstance(record.values.get("subject"), list) else ()
    names = listed or (record.text("subject"),)
    olds = (*record.answers("answers"), *record.answers("pred"))
    draft = Draft(record)
    draft.probe(
        "natural_question", _question(record.optional_text("loc")), record.answers("loc_ans")
    )
    if record.has("portability"):
        hop = record.child("portability")
        draft.probe("one_hop", hop.probe_text("New Question"), hop.answers("New Answer"))
    draft.probe("reversed_relation", record.optional_text("inverse question"), names)
    draft.probe("subject_alias", record.optional_text("alter_subject_question"), (target,))
    return make_request(
        draft,
        prompt=prompt,
        target=target,
        subject=names[0],
        old_target=olds[0] if olds else None,
        rephrases=record.texts("rephrase"),
        fallback_id=f"zsre-{record.where.number}",
    )


def _question(text: str | None) -> str | None:
    return text if text is None or text.endswith("?") else f"{text}?"
