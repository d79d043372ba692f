"""Data payload of the page's script: charts and cases as compressed base64, safe inside HTML."""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edit.report.cases import Case, Edit
from lightning_edit.report.runs import Run


@dataclass(frozen=True)
class RunCases:
    """A run with the cases of its last evaluation.

    Args:
        run: The run.
        edits: Its edits with their cases.
    """

    run: Run
    edits: Sequence[Edit]


def columns(runs: Sequence[RunCases], max_edits: int | None = None) -> dict[str, Any]:
    """Convert cases to columns of numbers with a shared string table.

    Args:
        runs: Runs and their cases.
        max_edits: Number of edits to take from each run; ``None``: all.

    Returns:
        ``texts``; ``runs``, ``kinds``, ``edits`` (run and id); ``rows``, one list per column.
    """
    texts: dict[str, int] = {}
    kinds: dict[str, int] = {}
    edits: list[tuple[int, str]] = []
    rows: list[tuple[Any, ...]] = []

    def text_index(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text, len(texts))

    for number, entry in enumerate(runs):
        for edit in entry.edits[:max_edits]:
            edits.append((number, f"{edit.id} (undone)" if edit.undone else edit.id))
            rows.extend(
                (
                    len(edits) - 1,
                    kinds.setdefault(case.kind, len(kinds)),
                    text_index(case.prompt),
                    text_index(case.expected),
                    text_index(case.before),
                    text_index(case.now),
                    _flags(case),
                    None if case.nll_change is None else round(case.nll_change, 2),
                )
                for case in edit.cases
            )
    names = ("edit", "kind", "question", "expected", "before", "now", "flags", "change")
    table = zip(*rows, strict=True) if rows else [()] * len(names)
    return {
        "texts": list(texts),
        "kinds": list(kinds),
        "runs": [entry.run.label for entry in runs],
        "edits": edits,
        "rows": {name: list(column) for name, column in zip(names, table, strict=True)},
    }


def _flags(case: Case) -> int:
    """Encode three flags (yes, no, unknown) and the expectation as one base-3 number."""
    good, changed, right = (
        2 if answer is None else int(answer) for answer in (case.good, case.changed, case.right)
    )
    return good + 3 * changed + 9 * right + 27 * int(case.expect == "unchanged")


def pack(value: Any) -> str:
    """Encode plain containers as deflated JSON in base64, safe anywhere in HTML.

    Without compression a page of a thousand cases would take several megabytes; base64 cannot
    contain the end tag of a script element.

    Args:
        value: Plain containers (dicts, lists, numbers, strings).
    """
    data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> Any:
    """Decode the text of :func:`pack`, as the page's script does."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def pack_to_fit(runs: Sequence[RunCases], max_chars: int) -> tuple[str, int]:
    """Pack as many edits as fit into a size limit.

    Args:
        runs: Runs and their cases.
        max_chars: Size limit in characters.

    Returns:
        The packed columns, and the largest number of edits per run in them.
    """
    max_edits = max((len(entry.edits) for entry in runs), default=0)
    packed = pack(columns(runs))
    while len(packed) > max_chars and max_edits > 0:
        max_edits = max(0, min(max_edits - 1, int(max_edits * 0.97 * max_chars / len(packed))))
        packed = pack(columns(runs, max_edits))
    return packed, max_edits
