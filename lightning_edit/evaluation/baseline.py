"""The pristine model's outcomes, measured once, and lines of outcomes on disk."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.edits.journal import write_atomic
from lightning_edit.evaluation.outcomes import ProbeScore, compare
from lightning_edit.exceptions import DataError


class Baseline:
    """The pristine model's outcomes, looked up by question.

    Args:
        scores: Outcomes of every probe, measured before the first edit.
    """

    def __init__(self, scores: Iterable[ProbeScore] = ()) -> None:
        self.scores = tuple(scores)
        self._of_question = {score.key: score for score in self.scores}
        self._of_edit = {(score.edit_id, *score.key): score for score in self.scores}

    def __len__(self) -> int:
        return len(self.scores)

    def compare(self, scores: Sequence[ProbeScore]) -> list[ProbeScore]:
        """Put the pristine outcome beside each of ``scores``.

        Raises:
            DataError: If a question was not measured on the pristine model.
        """
        compared = []
        for score in scores:
            pre = self._of_edit.get((score.edit_id, *score.key), self._of_question.get(score.key))
            if pre is None:
                raise DataError(
                    f"request {score.edit_id}: the baseline has no outcome for {score.prompt!r} "
                    f"and answers {score.answers}; measure all requests on the pristine model first"
                )
            compared.append(compare(score, pre))
        return compared

    def to_rows(self) -> list[dict[str, Any]]:
        """Return plain containers, for JSON or a checkpoint."""
        return [score.to_row() for score in self.scores]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "Baseline":
        """Read what :meth:`to_rows` wrote."""
        return cls(ProbeScore.from_row(row) for row in rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; the file appears whole or not at all.

    Args:
        path: File to write; its folder is made.
        rows: Plain containers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        DataError: If a line is not a JSON object.
    """
    return [row for _, row in iterate_rows(path)]


def iterate_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read one JSON object a line, one at a time: files of many evaluations may exceed memory.

    Args:
        path: File to read.

    Yields:
        Number of the line, from 1, and its object.

    Raises:
        DataError: If a line is not a JSON object.
    """
    # A carriage return inside a line is no end of it, hence `newline`.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip("\n"):
                yield number, _read_row(path, number, line)


def _read_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error}); write the file anew"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: expected a JSON object, got {type(row).__name__}; "
            "write the file anew"
        )
    return row
