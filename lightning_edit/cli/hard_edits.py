"""``lightning-edit mine``: which single edits make the model collapse. Loads no torch.

As for HardEdit (arXiv 2402.09656), each edit of a set is written alone on the pristine model and
perplexity on fixed texts is measured; what raises it beyond a bound is hard. The measuring is an
ordinary run (protocol ``single``, with ``CollapseCallback``), so it can be interrupted and resumed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.edits.journal import Journal
from lightning_edit.exceptions import DataError
from lightning_edit.storage.jsonl import read_rows, write_rows

_RATIO = "collapse/perplexity_ratio"
_HOW = (
    "measure with `lightning-edit edit --protocol single --trainer.callbacks+=CollapseCallback`, "
    "and go on with an interrupted run by `lightning-edit resume RUN`"
)


@dataclass(frozen=True)
class MinedEdit:
    """One edit, and what it alone does to the model.

    Args:
        ids: Its request, or the requests of its case.
        ratio: Perplexity on fixed texts over the pristine model's.
        perplexity: Perplexity on fixed texts.
    """

    ids: tuple[str, ...]
    ratio: float
    perplexity: float


def mined(folder: Path) -> list[MinedEdit]:
    """Read what each edit of a run did alone, the worst first.

    Args:
        folder: A run of protocol ``single`` with ``CollapseCallback``, finished or not.

    Raises:
        DataError: If it is not such a run.
    """
    path = folder / "measures.jsonl"
    rows = read_rows(path) if path.exists() else []
    found = [
        MinedEdit(tuple(row["edits"]), row["values"][_RATIO], row["values"]["collapse/perplexity"])
        for row in rows
        if "edits" in row and _RATIO in row.get("values", {})
    ]
    if not found:
        raise DataError(f"{folder} has no perplexity after each single edit; {_HOW}")
    return sorted(found, key=lambda edit: (-edit.ratio, edit.ids))


def records_of(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return requests of a run as records for ``JSONLDataModule``, in the order of ``ids``.

    Args:
        folder: The run.
        ids: Its requests.
    """
    known = {
        request["id"]: request
        for entry in Journal(folder / "ledger").commits()
        for request in entry.requests
    }
    return [_plain(known[name]) for name in ids]


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not given, here and inside."""
    return {
        name: [_plain(item) if isinstance(item, Mapping) else item for item in value]
        if isinstance(value, list | tuple)
        else _plain(value)
        if isinstance(value, Mapping)
        else value
        for name, value in request.items()
        if value not in (None, [], ())
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``mine``; ``None``: those of the process.

    Returns:
        Exit status.

    Raises:
        DataError: If the folder is no run that can be mined.
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
    edits = mined(options.run)
    hard = [edit for edit in edits if edit.ratio > options.ratio]
    for edit in edits[: options.show]:
        names = ", ".join(edit.ids)
        sys.stdout.write(f"{edit.ratio:>12.4g} ×  perplexity {edit.perplexity:<10.4g}  {names}\n")
    sys.stdout.write(
        f"{len(hard)} of {len(edits)} edits raise perplexity more than {options.ratio:g} times"
    )
    if hard:
        out = options.out or options.run / "hard.jsonl"
        write_rows(out, records_of(options.run, [name for edit in hard for name in edit.ids]))
        sys.stdout.write(f"; as data (JSONLDataModule): {out}")
    sys.stdout.write(".\n")
    return 0
