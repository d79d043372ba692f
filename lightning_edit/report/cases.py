"""Rows of ``cases.jsonl`` as what a reader asks: the question, before, now, and whether it held.

Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import DataError
from lightning_edit.functional.text import first_line
from lightning_edit.storage.jsonl import iterate_rows

#: Characters of a generated text that are shown; models that do not stop write whole pages.
_SHOWN = 160


@dataclass(frozen=True)
class Case:
    """One question at the last evaluation of a run.

    Args:
        edit_id: The edit it tests.
        aspect: The aspect it counts towards.
        kind: Its kind.
        prompt: The question.
        expected: The preferred answer.
        expect: What should happen, see :class:`~lightning_edit.types.Probe`.
        before: What the pristine model wrote; ``None`` if no text was generated.
        now: What the edited model wrote; ``None`` if no text was generated.
        right: Whether an accepted answer was given: generated, or teacher forced without a text.
        was_right: The same of the pristine model.
        changed: Whether the answer is another than the pristine model's.
        nll_change: Rise of the preferred answer's negative log probability, nats a token.
    """

    edit_id: str
    aspect: str
    kind: str
    prompt: str
    expected: str
    expect: str
    before: str | None
    now: str | None
    right: bool | None
    was_right: bool | None
    changed: bool | None
    nll_change: float | None

    @property
    def good(self) -> bool | None:
        """Whether what should happen did: the right answer, or no change."""
        if self.expect != "unchanged":
            return self.right
        return None if self.changed is None else not self.changed


@dataclass(frozen=True)
class Edit:
    """One edit and everything that was asked about it.

    Args:
        id: Its name.
        cases: Its questions, the edit's own first.
    """

    id: str
    cases: tuple[Case, ...]

    @property
    def itself(self) -> Case | None:
        """The question of the edit itself."""
        return next((case for case in self.cases if case.aspect == "reliability"), None)

    @property
    def held(self) -> bool | None:
        """Whether the edited model gives the new answer."""
        return None if self.itself is None else self.itself.right

    def count(self, aspect: str) -> tuple[int, int]:
        """Return how many questions of an aspect went as they should, and how many there are."""
        listed = [case.good for case in self.cases if case.aspect == aspect]
        known = [good for good in listed if good is not None]
        return sum(known), len(known)

    @property
    def harmed(self) -> list[Case]:
        """Questions that had to stay as they were and did not, the largest change first."""
        listed = [c for c in self.cases if c.expect == "unchanged" and c.changed]
        return sorted(listed, key=lambda case: -(case.nll_change or 0.0))


def read_edits(folder: Path) -> list[Edit]:
    """Read what was asked at a run's last evaluation.

    Args:
        folder: Folder of the run.

    Returns:
        Edits in the order of the stream; none if the run kept no cases.

    Raises:
        DataError: If a line is not one that a run writes.
    """
    last, rows = 0, list[Case]()
    for after, case in _cases(folder / "cases.jsonl"):
        if after > last:
            last, rows = after, []
        rows.append(case)
    edits: dict[str, list[Case]] = {}
    for case in rows:
        edits.setdefault(case.edit_id, []).append(case)
    return [Edit(name, tuple(cases)) for name, cases in edits.items()]


def _cases(path: Path) -> Iterator[tuple[int, Case]]:
    for number, row in iterate_rows(path) if path.exists() else ():
        yield _read(row, f"{path}, line {number}")


def _read(row: Mapping[str, Any], where: str) -> tuple[int, Case]:
    try:
        return int(row["after"]), _case(ProbeScore.from_row(row))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{where}: not a case of this version ({error!r}); "
            "give the folder of a run as it was written"
        ) from error


def _case(score: ProbeScore) -> Case:
    pristine = score.pristine
    old = None if pristine is None else pristine.nll
    return Case(
        edit_id=score.edit_id,
        aspect=score.aspect,
        kind=score.kind,
        prompt=score.prompt,
        expected=score.answers[0],
        expect=score.expect,
        before=None if pristine is None else _shown(pristine.generated),
        now=_shown(score.generated),
        right=_right(score),
        was_right=None if pristine is None else _right(pristine),
        changed=_changed(score),
        nll_change=None if old is None or score.nll is None else score.nll - old,
    )


def _right(score: ProbeScore) -> bool | None:
    value = score.em if score.em_gen is None else score.em_gen
    return None if value is None else value == 1.0


def _changed(score: ProbeScore) -> bool | None:
    value = score.kept if score.kept_gen is None else score.kept_gen
    return None if value is None else value < 1.0


def _shown(text: str | None) -> str | None:
    if text is None:
        return None
    line = first_line(text)
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
