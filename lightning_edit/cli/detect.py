"""``lightning-edit detect``: which facts a model does not know, by contrastive assessment (CKA)."""

import argparse
import json
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_edit.cli.model_options import add_model_options, load_model
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.storage.jsonl import write_rows
from lightning_edit.types import EditRequest

if TYPE_CHECKING:  # --help must not import torch
    from lightning_edit.analysis.detection import Verdict

log = logging.getLogger(__name__)

_SCHEMA = "lightning-edit-detection/1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit detect",
        description="Find facts that a language model does not know (CaliNET, section 2). A fact's "
        "object is compared after its own prompt and after prompts of the same subject with wrong "
        "relations, which are those of the other facts in the data. CKA is the ratio of the two "
        "probabilities; below 1 the fact is not known.",
    )
    add_model_options(parser)
    facts = parser.add_argument_group("facts")
    facts.add_argument(
        "--data", type=Path, metavar="FILE",
        help="facts in any form that `lightning-edit data check` reads, with subjects and of at "
        "least four relations; default: those of the embedded atlas",
    )  # fmt: skip
    facts.add_argument("--limit", type=int, metavar="N", help="the first N facts; default: all")
    facts.add_argument(
        "--object", choices=("target", "old_target"), default="target",
        help="which answer the model should know (%(default)s)",
    )  # fmt: skip
    score = parser.add_argument_group("assessment")
    score.add_argument(
        "--wrong", type=int, default=3, help="wrong relations a fact (%(default)s, the paper's)"
    )
    score.add_argument(
        "--smoothing", type=float, default=0.0,
        help="added to both probabilities (%(default)g; 1e-3 in the authors' score table)",
    )  # fmt: skip
    score.add_argument(
        "--whole_answer", action="store_true",
        help="probability of the whole answer; default: its first token, as in the paper",
    )  # fmt: skip
    score.add_argument("--seed", type=int, default=0, help="seed of the choice of relations")
    score.add_argument("--batch_size", type=int, default=64, help="rows of a pass (%(default)s)")
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="FILE", help="JSON of all facts and the summary")
    out.add_argument(
        "--unknown", type=Path, metavar="FILE",
        help="JSONL of the facts that are not known, for --data JSONLDataModule",
    )  # fmt: skip
    out.add_argument("--show", type=int, default=20, metavar="N", help="facts to list (20)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit detect``.

    Args:
        argv: Arguments after ``detect``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    options = _parser().parse_args(argv)
    limit_fits = options.limit is None or options.limit >= 1
    if options.wrong < 1 or options.smoothing < 0 or not limit_fits:
        raise ConfigError(
            "detect: expected --wrong and --limit of 1 or more and --smoothing of 0 or more, got "
            f"{options.wrong}, {options.limit} and {options.smoothing:g}"
        )
    requests, relations = _facts(options.data)
    from lightning_edit.analysis.detection import contrasted, detect
    from lightning_edit.inference.model_responder import ModelResponder

    # Wrong relations come from all facts of the data, also from those that are not assessed.
    facts, impossible = contrasted(requests, relations, options.wrong, options.object, options.seed)
    assessed = {request.id for request in requests[: options.limit]}
    facts = [fact for fact in facts if fact.id in assessed]
    model, encoder = load_model(options)
    verdicts = detect(
        ModelResponder(model, encoder, options.batch_size),
        facts,
        options.smoothing,
        options.whole_answer,
    )
    left_out = {name: why for name, why in impossible.items() if name in assessed}
    unknown = [one for one in verdicts if one.is_known is False]
    record = _record(options, verdicts, left_out)
    if options.out is not None:
        text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
        write_atomic(options.out, text.encode())
    if options.unknown is not None:
        missing = {one.id for one in unknown}
        write_rows(options.unknown, [_row(one) for one in requests if one.id in missing])
    _show(sorted(unknown, key=_score), record["summary"], options.show)
    if broken := record["summary"]["not_finite"]:
        log.warning(
            "The model's outputs are not finite at %d of %d facts, which have no verdict. Load it "
            "in a wider dtype (--lm_dtype float32 or bfloat16), or check where its weights are "
            "from.",
            *(broken, len(verdicts)),
        )
    return 0


def _score(one: "Verdict") -> float:
    """Return the score of a fact that has a verdict."""
    assert one.score is not None
    return one.score


def _facts(path: Path | None) -> tuple[list[EditRequest], list[str | None]]:
    if path is None:
        from lightning_edit.atlas.graph import load_atlas
        from lightning_edit.atlas.requests import make_requests

        requests = make_requests(load_atlas(), 0, "test")
        return requests, [None] * len(requests)
    from lightning_edit.datamodules.formats import read_requests

    parsed = read_requests(path)
    return parsed.requests, parsed.relations


def _record(
    options: argparse.Namespace, verdicts: "Sequence[Verdict]", left_out: dict[str, str]
) -> dict[str, Any]:
    scores = [one.score for one in verdicts if one.score is not None]
    median = statistics.median(scores) if scores else None
    unknown = sum(one.is_known is False for one in verdicts)
    return {
        "schema": _SCHEMA,
        "language_model": options.lm,
        "data": str(options.data or "atlas"),
        "object": options.object,
        "wrong_relations": options.wrong,
        "smoothing": options.smoothing,
        "whole_answer": options.whole_answer,
        "seed": options.seed,
        "summary": {
            "facts": len(verdicts),
            "unknown": unknown,
            "unknown_share": unknown / len(scores) if scores else None,
            "not_finite": len(verdicts) - len(scores),
            "median_score": None if median is None or math.isinf(median) else median,
            "left_out": len(left_out),
        },
        "left_out": left_out,
        "facts": [one.to_row() for one in verdicts],
    }


def _row(request: EditRequest) -> dict[str, Any]:
    named = request.to_dict()
    return {name: value for name, value in named.items() if value not in (None, [], ())}


def _show(unknown: "Sequence[Verdict]", summary: dict[str, Any], limit: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from lightning_edit.report.console import VisibleConsole

    console = VisibleConsole()
    if unknown and limit > 0:
        table = Table("id", "prompt", "object")
        for name in ("P true", "P wrong", "CKA"):
            table.add_column(name, justify="right")
        for one in unknown[:limit]:
            wrong = sum(one.wrong.values()) / len(one.wrong)
            numbers = (f"{one.true:.4f}", f"{wrong:.4f}", f"{_score(one):.3f}")
            table.add_row(*map(Text, (one.id, one.prompt, one.answer, *numbers)))
        console.print(table)
    median, broken = summary["median_score"], summary["not_finite"]
    said = "infinite" if median is None else f"{median:.3g}"
    if assessed := summary["facts"] - broken:
        console.print(
            f"{summary['unknown']:,} of {assessed:,} facts are not known (CKA below 1); "
            f"median CKA {said}"
        )
    if broken:
        console.print(f"{broken:,} facts have no verdict: the model's outputs are not finite")
    if summary["left_out"]:
        console.print(f"{summary['left_out']:,} facts could not be assessed; --out says why")
    sys.stdout.flush()
