"""Construction of an :class:`~lightning_edit.types.EditRequest` from a benchmark record."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_edit.edits.own_facts import note_place, refuse_special_token
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Record
from lightning_edit.types import EditRequest, Group, Probe, Triple
from lightning_edit.types.subject_names import locate

NO_ANSWER = "empty answers, probe left out"
NO_SUBJECT = "subject not in its prompt"
OTHER_CASE = "subject spelled in another case in its prompt"


@dataclass
class ProbeBuilder:
    """Builder that collects the probes of one benchmark record.

    Args:
        record: The record of the probes.
        probes: Probes collected so far.
    """

    record: Record
    probes: list[Probe] = field(default_factory=list)

    def add(
        self,
        kind: str,
        prompt: str | None,
        answers: Sequence[str],
        path: Sequence[Triple] = (),
        old: str | None = None,
        group: Group | None = None,
    ) -> None:
        """Add a probe if it has a prompt; a probe without an answer is skipped with a note."""
        if not prompt:
            return
        if not answers:
            self.record.note(NO_ANSWER, f"{kind}: {prompt}")
            return
        self.probes.append(Probe.of(kind, prompt, tuple(answers), tuple(path), old, group))


def make_request(
    builder: ProbeBuilder,
    *,
    prompt: str,
    target: str,
    subject: str | None,
    fallback_id: str,
    old_target: str | None = None,
    rephrases: Sequence[str] = (),
    subject_start: int | None = None,
    case: str | None = None,
    triple: Triple | None = None,
) -> EditRequest:
    """Build the edit request of a benchmark record.

    The subject takes its spelling from the prompt. If the prompt does not contain it, the request
    has no subject, with a note: editors that need none can still use it.
    """
    refuse_special_token(builder.record, "target", target)
    start = subject_start
    if start is None and subject is not None:
        start = locate(subject, prompt)
        if start is not None:
            note_place(builder.record, prompt, prompt[start : start + len(subject)])
    if start is None or subject is None:
        builder.record.note(NO_SUBJECT, f"{subject!r} in {prompt!r}")
    elif prompt[start : start + len(subject)] != subject:
        builder.record.note(OTHER_CASE, f"{subject!r} in {prompt!r}")
    try:
        return EditRequest(
            id=fallback_id,
            prompt=prompt,
            target=target,
            subject=None
            if start is None or subject is None
            else prompt[start : start + len(subject)],
            old_target=old_target,
            rephrases=tuple(rephrases),
            probes=tuple(builder.probes),
            subject_start=start,
            case=case,
            triple=triple,
        )
    except ValueError as error:
        raise DataError(f"{builder.record.where}: {error}") from error
