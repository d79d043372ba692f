"""``lightning-edit attribute-training``: which fine-tuning texts caused an answer (DDA, TracIn)."""

import argparse
import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_edit.analysis.training_data import BETA
from lightning_edit.analysis.training_data.rows import (
    TracedFact,
    TrainingText,
    check_causes,
    read_texts,
    read_traced_facts,
    rows_hash,
)
from lightning_edit.cli.model_options import add_model_options, load_model
from lightning_edit.cli.option_types import positive
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.atomic import write_atomic, write_error

if TYPE_CHECKING:  # --help must not import torch
    from torch import Tensor


log = logging.getLogger(__name__)

_SCHEMA = "lightning-edit-training-attribution/1"
_RESULTS = "attribution.json"
_RECALL_AT = (1, 5, 10)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit attribute-training",
        description="Training data attribution: find the fine-tuning texts that caused answers of "
        "a model, by Debias and Denoise Attribution (DDA, arXiv 2410.01285, reconstructed), beside "
        "TracIn, gradient cosine, hidden-state cosine and BM25. Where the causes of facts are "
        "known, AUC and recall@k are shown. An interrupted run goes on when it is started again. "
        "How to use the result: docs/attribution.md.",
    )
    add_model_options(parser)
    data = parser.add_argument_group("fine-tuning")
    data.add_argument(
        "--checkpoints", type=Path, nargs="*", default=[], metavar="PATH",
        help="one checkpoint an epoch, in order: Lightning's .ckpt files, saved models, or one "
        "folder of them; --lm is the model before fine-tuning",
    )  # fmt: skip
    data.add_argument(
        "--text", type=Path, required=True, metavar="FILE",
        help='JSONL of the training texts: "text", or "prompt" and "answer", and "id"',
    )  # fmt: skip
    data.add_argument(
        "--facts", type=Path, required=True, metavar="FILE",
        help='JSONL of what to explain: "prompt" and "answer", and if known "correct" (the answer '
        'it should have been) and "causes" (ids of training texts)',
    )  # fmt: skip
    gradients = parser.add_argument_group("gradients")
    gradients.add_argument(
        "--subset", nargs="+", default=["mlp_down"], metavar="NAME",
        help="weights whose gradients are compared: mlp_down, mlp_up, mlp, attention, all, or "
        "patterns of module names (default: mlp_down)",
    )  # fmt: skip
    gradients.add_argument(
        "--layers", type=int, nargs="+", metavar="N", help="blocks; default: all"
    )
    gradients.add_argument(
        "--projection", type=positive, metavar="WIDTH",
        help="random projection of both sides of a gradient, for long texts: a text then takes "
        "WIDTH² numbers a layer; default: exact factors, a token takes d_in + d_out",
    )  # fmt: skip
    gradients.add_argument("--seed", type=int, default=0, help="seed of the projection")
    gradients.add_argument("--rows", type=positive, default=16, help="rows of a pass (%(default)s)")
    gradients.add_argument(
        "--block", type=positive, default=128, help="texts of a file of the index (%(default)s)"
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--beta", type=float, default=BETA,
        help="share of the base model's influence that DDA subtracts (%(default)g)",
    )  # fmt: skip
    scores.add_argument(
        "--learning_rates", type=float, nargs="+", metavar="RATE",
        help="TracIn's weight of each checkpoint; default: equal",
    )  # fmt: skip
    scores.add_argument(
        "--bm25", action="store_true",
        help='BM25 too; needs pip install "lightning-edit[attribution]"',
    )  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER",
        help="folder of the index and of the result; an unfinished run there is resumed",
    )  # fmt: skip
    out.add_argument("--top", type=positive, default=10, help="texts kept a fact (%(default)s)")
    out.add_argument(
        "--method", default="dda_no_debias",
        help="method whose texts are listed (%(default)s, which finds most planted texts)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit attribute-training``.

    Args:
        argv: Arguments after the verb; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    if not 0 <= options.beta < float("inf"):
        raise ConfigError(f"expected --beta of 0 or more, got {options.beta:g}; 0 does not debias")
    if not options.checkpoints:
        raise ConfigError(
            "expected --checkpoints, one an epoch of the fine-tuning, got none; save them with "
            "Lightning's ModelCheckpoint(every_n_epochs=1, save_top_k=-1)"
        )
    texts, facts = read_texts(options.text), read_traced_facts(options.facts)
    check_causes(texts, facts)
    try:
        record = _attribute(options, texts, facts)
    except KeyboardInterrupt:
        line = shlex.join(["lightning-edit", "attribute-training", *given])
        sys.stderr.write(f"Interrupted. Finished blocks are kept; go on with\n  {line}\n")
        return 1
    _show(record, options)
    return 0


def _attribute(
    options: argparse.Namespace, texts: list[TrainingText], facts: list[TracedFact]
) -> dict[str, Any]:
    from lightning_edit.analysis.training_data.attribution import (
        GRADIENT_METHODS,
        TrainingDataAttributor,
    )
    from lightning_edit.analysis.training_data.baselines import require_bm25
    from lightning_edit.analysis.training_data.checkpoints import checkpoint_paths
    from lightning_edit.analysis.training_data.index import IndexSettings
    from lightning_edit.analysis.training_data.quality import known_causes, quality_table

    methods = [*GRADIENT_METHODS, "hidden_cosine", *(["bm25"] if options.bm25 else [])]
    if options.method not in methods:
        raise ConfigError(
            f"expected --method of {', '.join(methods)}, got {options.method!r}; choose one of them"
        )
    if options.bm25:
        require_bm25()
    paths = checkpoint_paths(options.checkpoints)
    settings = IndexSettings(
        tuple(options.subset),
        None if options.layers is None else tuple(options.layers),
        options.projection,
        options.seed,
        options.rows,
        options.block,
    )
    model, encoder = load_model(options)
    attributor = TrainingDataAttributor(
        model, encoder, paths, texts, settings, options.out / "index"
    )
    attributor.check(facts, options.learning_rates)
    with _progress_bar(attributor.steps) as step:
        products = attributor.products(facts, step)
    scores = attributor.gradient_scores(products, options.beta, options.learning_rates)
    scores |= attributor.baseline_scores(facts, options.bm25)
    scores = _finite(scores)
    causes = known_causes(texts, facts)
    known = bool(causes.any())
    record = {
        "schema": _SCHEMA,
        "index": attributor.index.identity,
        "facts_sha256": rows_hash(facts),
        "checkpoint_paths": [str(path) for path in paths],
        "beta": options.beta,
        "learning_rates": options.learning_rates,
        "quality": quality_table(scores, causes, _RECALL_AT) if known else None,
        "facts": _found(scores, texts, facts, options.top),
    }
    path = options.out / _RESULTS
    try:
        write_atomic(path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
    except OSError as error:
        raise write_error(error, path, "The index is kept.") from error
    return record


def _finite(scores: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Rank scores that are no numbers last, and say how many there are."""
    ranked, broken = {}, {}
    for method, values in scores.items():
        ranked[method] = values.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        if count := int(ranked[method].isinf().sum()):
            broken[method] = f"{method}: {count} of {values.numel()}"
    if broken:
        log.warning(
            "Scores of texts for facts are not finite, and so rank last (%s). The gradients or "
            "outputs of a checkpoint overflow there; load the model in a wider dtype, or leave "
            "that checkpoint out.",
            "; ".join(broken.values()),
        )
    return ranked


def _found(
    scores: Mapping[str, "Tensor"],
    texts: Sequence[TrainingText],
    facts: Sequence[TracedFact],
    top: int,
) -> list[dict[str, Any]]:
    """Return each fact with the first texts of every method."""
    rows = []
    for number, fact in enumerate(facts):
        methods = {}
        for method, values in scores.items():
            best = values[:, number].topk(min(top, len(texts)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            methods[method] = [
                {"text": texts[one].id, "score": score if math.isfinite(score) else None}
                for one, score in pairs
            ]
        rows.append(
            {
                "id": fact.id,
                "prompt": fact.prompt,
                "answer": fact.answer,
                "correct": fact.correct,
                "causes": list(fact.causes),
                "methods": methods,
            }
        )
    return rows


def _show(record: Mapping[str, Any], options: argparse.Namespace) -> None:
    from rich.table import Table
    from rich.text import Text

    from lightning_edit.report.console import VisibleConsole

    console = VisibleConsole()
    listed = Table("fact", "answer", f"first training texts ({options.method})")
    for fact in record["facts"]:
        first = ", ".join(one["text"] for one in fact["methods"][options.method][:5])
        listed.add_row(*map(Text, (fact["prompt"], fact["answer"], first)))
    console.print(listed)
    if record["quality"]:
        metrics = ["auc", *(f"recall@{k}" for k in _RECALL_AT)]
        table = Table("method", *metrics, "n")
        for method, values in record["quality"].items():
            cells = (
                f"{values[one]['mean']:.3f} [{values[one]['low']:.3f}, {values[one]['high']:.3f}]"
                for one in metrics
            )
            table.add_row(method, *cells, str(values["auc"]["n"]))
        console.print(table)
    console.print(Text(f"written to {options.out / _RESULTS}"))
    sys.stdout.flush()


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of the index's blocks, with the remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from lightning_edit.report.console import VisibleConsole

    columns = (TextColumn("Gradients"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"))
    console = VisibleConsole(stderr=True)
    with Progress(*columns, Remaining(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
