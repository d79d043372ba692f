"""Baseline: probe outcomes of the pristine model, scored once before the first edit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_edit.evaluation.outcomes import ProbeScore, compare
from lightning_edit.exceptions import DataError


class Baseline:
    """Baseline outcomes of the pristine model, looked up by probe.

    Args:
        scores: Outcomes of every probe, scored before the first edit.
    """

    def __init__(self, scores: Iterable[ProbeScore] = ()) -> None:
        self.scores = tuple(scores)
        self._of_question = {score.key: score for score in self.scores}
        self._of_edit = {(score.edit_id, *score.key): score for score in self.scores}
        # Of two probes that ask the same one may have a contrast and the other none.
        self._of_probe = {(score.edit_id, score.kind, *score.key): score for score in self.scores}

    def __len__(self) -> int:
        return len(self.scores)

    def compare(self, scores: Sequence[ProbeScore]) -> list[ProbeScore]:
        """Attach the pristine outcome to each of ``scores``.

        Raises:
            DataError: If a probe was not scored on the pristine model.
        """
        compared = []
        for score in scores:
            pre = (
                self._of_probe.get((score.edit_id, score.kind, *score.key))
                or self._of_edit.get((score.edit_id, *score.key))
                or self._of_question.get(score.key)
            )
            if pre is None:
                raise DataError(
                    f"request {score.edit_id}: the baseline has no outcome for {score.prompt!r} "
                    f"and answers {score.answers}; measure all requests on the pristine model first"
                )
            compared.append(compare(score, pre))
        return compared

    def to_rows(self) -> list[dict[str, Any]]:
        """Serialise to plain containers, for JSON or a checkpoint."""
        return [score.to_row() for score in self.scores]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "Baseline":
        """Deserialise the rows of :meth:`to_rows`."""
        return cls(ProbeScore.from_row(row) for row in rows)
