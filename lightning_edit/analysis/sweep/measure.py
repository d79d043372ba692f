"""Edit cases one by one on the pristine model, and put each one's outcome into a few numbers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.functional.measures import mean
from lightning_edit.metrics.aspects import request_means
from lightning_edit.types import EditRequest, Mode

#: What a study looks at, and the measure of each: the leading ones of a run's table.
ASPECTS: dict[str, str] = {"reliability": "em", "generalization": "em", "locality": "kept"}

Case = list[EditRequest]


@dataclass(frozen=True)
class CaseScores:
    """What one case's edit did.

    Args:
        case: Id of its first request.
        values: Shares by aspect; an aspect that the case does not ask about is absent.
    """

    case: str
    values: Mapping[str, float]

    @classmethod
    def of(cls, scores: Sequence[ProbeScore], mode: Mode) -> "CaseScores":
        """Average the outcomes of one case's probes, first by request.

        Args:
            scores: Compared with the pristine model.
            mode: Teacher forced or generated.
        """
        by_request: dict[str, list[ProbeScore]] = {}
        for score in scores:
            by_request.setdefault(score.edit_id, []).append(score)
        found = [request_means(listed) for listed in by_request.values()]
        names = {aspect: (aspect, f"{measure}@{mode}") for aspect, measure in ASPECTS.items()}
        values = {
            aspect: mean([one[name] for one in found if name in one])
            for aspect, name in names.items()
            if any(name in one for one in found)
        }
        return cls(next(iter(by_request)), values)

    def to_row(self) -> dict[str, Any]:
        """Return plain containers."""
        return {"case": self.case, **self.values}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "CaseScores":
        """Read what :meth:`to_row` wrote."""
        values = {aspect: float(row[aspect]) for aspect in ASPECTS if aspect in row}
        return cls(str(row["case"]), values)


def table_of(outcomes: Sequence[CaseScores]) -> Float[Tensor, "n a"]:
    """Return outcomes as numbers, nan where a case does not ask about an aspect.

    Args:
        outcomes: One line each; columns are :data:`ASPECTS`.
    """
    nothing = float("nan")
    rows = [[one.values.get(aspect, nothing) for aspect in ASPECTS] for one in outcomes]
    return torch.tensor(rows, dtype=torch.float64)


def found_alone(
    editor: Editor, cases: Sequence[Case], seed: int, together: int
) -> Iterator[tuple[Case, Delta]]:
    """Find each case's edit as if it were alone on the model.

    Args:
        editor: A bound editor.
        cases: The cases.
        seed: Seed of everything random in an edit.
        together: Cases that are searched for together; the results are those of one by one.

    Yields:
        Cases of one request and their deltas, then those of several, which are solved together.
    """
    lone = [case for case in cases if len(case) == 1]
    for start in range(0, len(lone), together):
        part = lone[start : start + together]
        batch = encode_batch(editor.tokenizer, [case[0] for case in part], seed)
        yield from zip(part, editor.edit_independent(batch), strict=True)
    for case in cases:
        if len(case) > 1:
            yield case, editor.edit(encode_batch(editor.tokenizer, case, seed))


def digest(value: Any) -> str:
    """Return the SHA-256 of plain containers.

    Args:
        value: Anything that JSON can hold.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()
