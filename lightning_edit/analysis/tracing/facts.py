"""Facts for causal tracing, read from a file of known facts or edits. No import of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.datamodules.formats.files import read_values
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Record, Where
from lightning_edit.types import EditRequest
from lightning_edit.types.subjects import locate_subject


@dataclass(frozen=True)
class Fact:
    """A fact to trace: prompt, subject and answer.

    Args:
        prompt: Text before the answer.
        subject: Subject of the fact; a part of the prompt.
        start: Character index at which the subject begins.
        answer: Expected continuation of the prompt.
    """

    prompt: str
    subject: str
    start: int
    answer: str

    @property
    def end(self) -> int:
        """Character index just after the subject."""
        return self.start + len(self.subject)


def read_facts(path: str | Path) -> list[Fact]:
    """Read facts to trace from a JSON or JSONL file.

    Args:
        path: A JSON list or JSON Lines file. Either known facts (fields ``subject``, ``prompt`` or
            ``template`` with one ``{}``, and ``attribute``, else ``prediction``), or edits in any
            format that data modules read; their old answers are then the known facts.

    Raises:
        DataError: If the file or a record cannot be read.
    """
    values = read_values(Path(path))
    if isinstance(values[0][1], dict) and _is_known_fact(values[0][1]):
        return [_known_fact(where, value) for where, value in values]
    facts = [fact for request in read_requests(path).requests if (fact := of_request(request))]
    if not facts:
        raise DataError(
            f"{path}: no record names both a subject and the old answer, and tracing needs both; "
            "add `subject` and `old_target`"
        )
    return facts


def of_request(request: EditRequest) -> Fact | None:
    """Return the fact that an edit replaces; ``None`` without a subject or an old answer.

    Args:
        request: The edit request.
    """
    if request.subject is None or request.subject_end is None or not request.old_target:
        return None
    start = request.subject_end - len(request.subject)
    return Fact(request.prompt, request.subject, start, request.old_target)


def _is_known_fact(value: Mapping[str, Any]) -> bool:
    has = value.keys()
    return "subject" in has and bool({"attribute", "prediction"} & has) and "target" not in has


def _known_fact(where: Where, value: Any) -> Fact:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with a fact, got {type(value).__name__}")
    record = Record(value, where, False, [])
    subject = record.text("subject")
    template = record.optional_text("template")
    if record.has("prompt"):
        prompt = record.text("prompt")
        start = _subject_start(subject, prompt, template)
    else:
        if template is None or template.count("{}") != 1:
            record.fail(
                "template", "text with one {}", template, "give `prompt`, or where the subject goes"
            )
        prompt, start = template.replace("{}", subject), template.index("{}")
    if prompt[start : start + len(subject)] != subject:
        record.fail("prompt", f"text that contains {subject!r}", prompt, "correct `subject`")
    answer = record.text("attribute", "prediction")
    return Fact(prompt.rstrip(), subject, start, answer)


def _subject_start(subject: str, prompt: str, template: str | None) -> int:
    """Return the subject's character index; a template selects one of several occurrences."""
    if template is not None and "{}" in template:
        start = template.index("{}")
        if prompt[start : start + len(subject)] == subject:
            return start
    return locate_subject(prompt, subject) or 0
