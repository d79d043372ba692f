"""Facts of a run that moved most although they should not, as questions for attribution.

Read from ``cases.jsonl`` (probes that must not change) and ``ripple.jsonl``. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from lightning_edit.evaluation.attributed import AskedFact
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.exceptions import DataError
from lightning_edit.storage.jsonl import iterate_rows
from lightning_edit.storage.run_folder import RunFolder

#: File of the ripple callback.
_RIPPLE = "ripple.jsonl"


def moved_facts(folder: Path, count: int) -> list[AskedFact]:
    """Return the facts whose answers changed most at the run's last evaluation.

    Args:
        folder: Folder of the run.
        count: Maximum number of facts.

    Returns:
        Facts, the largest change per answer token first; none of them twice.

    Raises:
        DataError: If the run scored no probe that must not change, and no ripple effects.
    """
    found: dict[AskedFact, float] = {}
    for name in (RunFolder(folder).cases, folder / _RIPPLE):
        last = 0
        mine: dict[AskedFact, float] = {}
        for number, row in iterate_rows(name) if name.exists() else ():
            try:
                after = int(row["after"])
                moved = (
                    _ripple(row) if name.name == _RIPPLE else moved_probe(ProbeScore.from_row(row))
                )
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(
                    f"{name}, line {number}: not a row of this version ({error!r}); give the "
                    "folder of a run as it was written"
                ) from error
            if after > last:
                last, mine = after, {}
            if moved is not None:
                mine[moved[0]] = moved[1]
        found |= mine
    if not found:
        raise DataError(
            f"{folder} has scored no fact that must not change (no probe of locality with a "
            "teacher-forced score, no ripple effects); name facts with --fact PROMPT ANSWER"
        )
    return largest(found, count)


def largest(found: Mapping[AskedFact, float], count: int) -> list[AskedFact]:
    """Return the facts of the largest changes, none of them twice.

    Args:
        found: Changes by fact; several edits may have the same fact.
        count: Maximum number of facts.
    """
    kept: dict[tuple[str, str], AskedFact] = {}
    for fact in sorted(found, key=lambda one: -abs(found[one])):
        kept.setdefault((fact.prompt, fact.answer), fact)
    return list(kept.values())[:count]


def moved_probe(score: ProbeScore) -> tuple[AskedFact, float] | None:
    """Return the fact of a probe that must not change, and its rise in nats per token.

    Args:
        score: Outcome of the probe.

    Returns:
        ``None`` for other probes, and without a teacher-forced score of both models.
    """
    before = None if score.pristine is None else score.pristine.nll
    if score.expect != "unchanged" or score.nll is None or before is None:
        return None
    fact = AskedFact(score.prompt, score.answers[0], None, score.edit_id, score.kind)
    return fact, score.nll - before


def _ripple(row: dict[str, object]) -> tuple[AskedFact, float]:
    fact, before, after = row["fact"], row["nll_before"], row["nll_after"]
    assert isinstance(fact, dict)
    asked = AskedFact(fact["prompt"], fact["object"], None, str(row["edit_id"]), str(row["set"]))
    return asked, float(str(after)) - float(str(before))
