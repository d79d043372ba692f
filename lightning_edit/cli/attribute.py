"""``lightning-edit attribute``: which edits of a run moved a fact, and in which block."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_edit.cli.model_options import add_unedited_model_options
from lightning_edit.cli.option_types import positive, whole
from lightning_edit.evaluation.attributed import SCHEMA, FactAttribution, name_of
from lightning_edit.exceptions import LightningEditError
from lightning_edit.functional.visible import visible
from lightning_edit.storage.atomic import write_atomic

if TYPE_CHECKING:  # --help must not import torch
    from lightning_edit.session.open import EditedRun

_DESCRIPTION = """\
Say which edits of a run moved a fact, and in which block.

A closed-form update is a sum over its requests, so what each edit adds to a layer's output at the
fact's key is exact; its effect on the answer's log-probability is of first order, in nats. Other
updates are attributed commit by commit. Without --fact the facts are those that moved most among
the run's probes that must not change, and RUN/attribution.json keeps the result for the page of
`lightning-edit report`.
"""
#: Columns of a CSV file.
_COLUMNS = (
    "prompt", "answer", "change", "edit", "commit", "by", "stack", "block", "module", "log_prob",
    "logit", "share", "overlap", "resolved",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; imports nothing heavy, so that ``--help`` stays fast."""
    parser = argparse.ArgumentParser(
        "lightning-edit attribute",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--fact",
        nargs=2,
        action="append",
        metavar=("PROMPT", "ANSWER"),
        help="a fact to attribute; may be given several times",
    )
    parser.add_argument(
        "--facts", type=positive, default=5, metavar="N", help="without --fact: how many (5)"
    )
    parser.add_argument(
        "--top", type=positive, default=3, metavar="N", help="edits listed for each fact (3)"
    )
    parser.add_argument(
        "--by",
        choices=("auto", "columns", "undo"),
        default="auto",
        help="columns: requests' own columns, or an error; undo: leave each commit out and measure "
        "(exact, a forward pass each); auto: columns where there are some, else whole commits",
    )
    parser.add_argument(
        "--measure",
        type=whole,
        default=1,
        metavar="N",
        help="commits of each fact that are also measured by leaving them out (1)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a .json or .csv file")
    add_unedited_model_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit attribute``.

    Args:
        argv: Arguments after ``attribute``; ``None`` reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 after an error that the user can fix.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.out is not None and options.out.suffix not in (".json", ".csv"):
        parser.error(f"--out: expected a name that ends in .json or .csv, got {options.out}")
    try:
        edited = _open(options)
        found = edited.attribute(
            options.fact and [tuple(fact) for fact in options.fact],
            options.top,
            options.by,
            options.measure,
            options.facts,
        )
        if not options.fact:
            edited.keep_attributions(found)
    except LightningEditError as error:
        sys.stderr.write(visible(f"lightning-edit attribute: {error}\n"))
        return 2
    if options.out is not None:
        text = _csv(found) if options.out.suffix == ".csv" else _json(found)
        write_atomic(options.out, text.encode())
    _show(found)
    return 0


def _open(options: argparse.Namespace) -> "EditedRun":
    from lightning_edit.edits.run_journal import open_journal
    from lightning_edit.models.loading import load_language_model
    from lightning_edit.session.open import open_run

    opening = open_journal(options.run).opening
    if options.model is None and not options.lm_trust_remote_code:
        return open_run(options.run)
    facts = (opening or {}).get("language_model") or {}
    model = load_language_model(
        options.model or str(facts.get("name", "atlas")),
        str(facts.get("dtype", "float32")),
        add_bos=bool(facts.get("bos", False)),
        trust_remote_code=options.lm_trust_remote_code,
    )
    return open_run(options.run, language_model=model)


def _json(found: Sequence[FactAttribution]) -> str:
    content = {"schema": SCHEMA, "facts": [one.to_row() for one in found]}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _csv(found: Sequence[FactAttribution]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in found:
        fact = (one.fact.prompt, one.fact.answer, one.change)
        for e in one.effects:
            where: tuple[Any, ...] = (" ".join(e.ids), e.commit, e.by, e.stack, e.block, e.module)
            writer.writerow([*fact, *where, e.log_prob, e.logit, e.share, e.overlap, e.resolved])
        for m in one.measured:
            blank = ("", "", "")
            writer.writerow([*fact, " ".join(m.ids), m.commit, "measured", *blank, m.log_prob])
    return text.getvalue()


def _show(found: Sequence[FactAttribution]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lightning_edit.report.console import VisibleConsole

    console = VisibleConsole()
    for one in found:
        console.print(Text(f"{one.fact.prompt} → {one.fact.answer}: {one.sentence()}"))
        table = Table("edit", "block", "by")
        for name in ("log-prob", "logit", "‖share‖", "overlap"):
            table.add_column(name, justify="right")
        for e in one.effects:
            block = "–" if e.block is None else str(e.block)
            block = f"encoder {block}" if e.stack == "encoder" else block
            overlap = "–" if e.overlap is None else f"{e.overlap:.3f}"
            numbers = (f"{e.log_prob:+.3f}", f"{e.logit:+.3f}", f"{e.share:.3g}", overlap)
            table.add_row(*map(Text, (name_of(e.ids), block, e.by, *numbers)))
        for m in one.measured:
            name = name_of(m.ids) if len(m.ids) == 1 else f"commit {m.commit}"
            cells = (name, "all", "left out", f"{m.log_prob:+.3f}", "–", "–", "–")
            table.add_row(*map(Text, cells))
        console.print(table)
    whole = {e.commit for one in found for e in one.effects if e.by == "undo" and len(e.ids) > 1}
    if whole:
        console.print(
            f"{len(whole)} commits of several edits have no columns of their requests (another "
            "kind of update, or a run of a version that did not record them) and are attributed "
            "as a whole."
        )
    sys.stdout.flush()
