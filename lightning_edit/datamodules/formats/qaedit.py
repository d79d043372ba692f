"""QAEdit parser: questions of Natural Questions, TriviaQA and SimpleQA to edit (arXiv 2502.11177).

A record has ``prompt`` (a question), ``subject``, ``target``, ``rephrase`` and ``locality``, a list
of unrelated questions ``loc`` with their answers ``loc_ans``. The field names are those that the
authors' published loader reads; no record of the data set was at hand.
"""

from collections.abc import Mapping
from typing import Any

from lightning_edit.datamodules.formats.requests import ProbeBuilder, make_request
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest

_OWN = {"rephrases", "probes", "old_target", "subject_start", "separator", "case", "triple"}


def recognises(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the fields of QAEdit."""
    questions = values.get("locality")
    if not {"prompt", "target"} <= values.keys() or not isinstance(questions, list):
        return False
    # Somebody's own facts with a list of that name: this format would lose their other fields.
    if _OWN & values.keys() or not (questions or "rephrase" in values):
        return False
    return not any(isinstance(one, dict) and "prompt" in one for one in questions)


def parse(record: Record) -> EditRequest:
    """Parse one QAEdit record into an edit request.

    Note:
        The data set has no old answer: its questions are those that the models answer wrongly. All
        unrelated questions become probes; the authors' loader scores the first.
    """
    builder = ProbeBuilder(record)
    for question in record.children("locality"):
        builder.add("natural_question", question.probe_text("loc"), question.answers("loc_ans"))
    return make_request(
        builder,
        prompt=record.text("prompt"),
        target=record.text("target"),
        subject=record.text("subject"),
        rephrases=record.texts("rephrase"),
        fallback_id=f"qaedit-{record.where.number}",
    )
