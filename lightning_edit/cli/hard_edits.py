"""``lightning-edit mine``: hard edits, i.e. single edits that make the model collapse.

As in HardEdit (arXiv 2402.09656), each edit is written alone into the pristine model and perplexity
on fixed texts is measured; an edit that raises it beyond a bound is hard. The measurement is an
ordinary run (protocol ``single`` with ``CollapseCallback``), so it can be interrupted and resumed.
Loads no torch.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import DataError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.jsonl import read_rows, write_rows

_RATIO = "collapse/perplexity_ratio"
_HOW = (
    "measure with `lightning-edit edit --protocol single --trainer.callbacks+=CollapseCallback`, "
    "and go on with an interrupted run by `lightning-edit resume RUN`"
)


@dataclass(frozen=True)
class EditPerplexity:
    """Perplexity of the model after one single edit.

    Args:
        ids: The edit's request, or the requests of its case.
        ratio: Perplexity on fixed texts, divided by the pristine model's.
        perplexity: Perplexity on fixed texts.
    """

    ids: tuple[str, ...]
    ratio: float
    perplexity: float


def rank_edits_by_perplexity(folder: Path) -> list[EditPerplexity]:
    """Read the perplexity after each single edit of a run, highest ratio first.

    Args:
        folder: A run of protocol ``single`` with ``CollapseCallback``, finished or not.

    Raises:
        DataError: If the folder is not such a run.
    """
    path = folder / "measures.jsonl"
    rows = read_rows(path) if path.exists() else []
    found = [
        EditPerplexity(
            tuple(row["edits"]), row["values"][_RATIO], row["values"]["collapse/perplexity"]
        )
        for row in rows
        if "edits" in row and _RATIO in row.get("values", {})
    ]
    if not found:
        raise DataError(f"{folder} has no perplexity after each single edit; {_HOW}")
    return sorted(found, key=lambda edit: (-edit.ratio, edit.ids))


def request_records(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return edit requests of a run as ``JSONLDataModule`` records, in the order of ``ids``.

    Args:
        folder: Folder of the run.
        ids: Ids of requests.
    """
    known = {
        request["id"]: request
        for entry in Journal(folder / "ledger").commits()
        for request in entry.requests
    }
    return [_drop_empty(known[name]) for name in ids]


def _drop_empty(request: Mapping[str, Any]) -> dict[str, Any]:
    """Drop null and empty fields of a record, nested records included."""
    return {
        name: [_drop_empty(item) if isinstance(item, Mapping) else item for item in value]
        if isinstance(value, list | tuple)
        else _drop_empty(value)
        if isinstance(value, Mapping)
        else value
        for name, value in request.items()
        if value not in (None, [], ())
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit mine``.

    Args:
        argv: Arguments after ``mine``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status.

    Raises:
        DataError: If the run has no perplexity after single edits.
    """
    parser = argparse.ArgumentParser(
        "lightning-edit mine",
        description="Find the edits of a run that, each alone, make the model collapse, "
        f"and write them as data. First {_HOW}.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--ratio", type=float, default=2.0, help="perplexity over the pristine model's (default 2)"
    )
    parser.add_argument("--out", type=Path, help="JSONL file; default: hard.jsonl in the run")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="edits to list (10)")
    options = parser.parse_args(argv)
    edits = rank_edits_by_perplexity(options.run)
    hard = [edit for edit in edits if edit.ratio > options.ratio]
    for edit in edits[: options.show]:
        names = visible(", ".join(edit.ids))
        sys.stdout.write(f"{edit.ratio:>12.4g} ×  perplexity {edit.perplexity:<10.4g}  {names}\n")
    sys.stdout.write(
        f"{len(hard)} of {len(edits)} edits raise perplexity more than {options.ratio:g} times"
    )
    if hard:
        out = options.out or options.run / "hard.jsonl"
        write_rows(out, request_records(options.run, [name for edit in hard for name in edit.ids]))
        sys.stdout.write(f"; as data (JSONLDataModule): {visible(str(out))}")
    sys.stdout.write(".\n")
    return 0
