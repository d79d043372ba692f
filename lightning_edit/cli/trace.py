"""``lightning-edit trace``: causal tracing, i.e. which hidden states of a model carry facts."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_edit.analysis.tracing.facts import Fact, of_request, read_facts
from lightning_edit.analysis.tracing.show import finish
from lightning_edit.cli.model_options import add_model_options, load_model
from lightning_edit.cli.option_types import positive
from lightning_edit.exceptions import ConfigError, DataError

if TYPE_CHECKING:  # --help must not import torch
    from lightning_edit.analysis.tracing.restore import Prepared, Tracer
    from lightning_edit.models.prompt_encoder import PromptEncoder

#: Share of the blocks in a window: 10 of GPT-2 XL's 48 (the paper, section 2.2).
_WINDOW = 10 / 48


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-edit trace",
        description="Causal tracing (ROME, section 2): noise is added to a subject's embeddings, "
        "one clean hidden state after the other is restored, and heat maps show how much of the "
        "answer's probability returns. An interrupted run is resumed when it is given its folder "
        "with --run. How to use the result: docs/layers.md.",
    )
    add_model_options(parser)
    facts = parser.add_argument_group("facts")
    facts.add_argument(
        "--facts", type=Path, metavar="FILE",
        help="known facts (subject, prompt or template, attribute), or edits in any form that "
        "`lightning-edit data check` reads; default: facts of the embedded atlas",
    )  # fmt: skip
    facts.add_argument(
        "--limit", type=positive, default=100,
        help="number of known facts to trace (%(default)s; the paper: 1000)",
    )  # fmt: skip
    trace = parser.add_argument_group("tracing")
    trace.add_argument(
        "--noise", type=float, default=3.0,
        help="noise in standard deviations of the subjects' embeddings (%(default)g)",
    )  # fmt: skip
    trace.add_argument(
        "--samples", type=positive, default=10, help="noise samples a fact (%(default)s)"
    )
    trace.add_argument(
        "--window", type=positive,
        help="blocks whose MLPs or attentions are restored together; default: a fifth of the "
        "model, the paper's 10 of 48",
    )  # fmt: skip
    trace.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch_rows", type=positive, default=256, help="rows of one forward pass (%(default)s)"
    )
    run.add_argument("--run", type=Path, help="folder of the run; an unfinished run is resumed")
    run.add_argument(
        "--figures", default="png", help="formats of the heat maps: png,pdf,svg (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit trace``.

    Args:
        argv: Arguments after ``trace``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(given)
    if options.noise <= 0:
        raise ConfigError(f"--noise must be above 0, got {options.noise:g}")
    from lightning_edit.report.sweep_plots import check_formats

    check_formats(options.figures.split(","))
    facts = _facts(options.facts)
    folder = options.run or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-trace"
    try:
        record, rows = _trace(options, facts, folder)
    except KeyboardInterrupt:
        again = given if options.run else [*given, "--run", str(folder)]
        line = shlex.join(["lightning-edit", "trace", *again])
        sys.stderr.write(f"Interrupted. Traced facts are kept; go on with\n  {line}\n")
        return 1
    finish(record, rows, folder, options.figures.split(","))
    return 0


def _facts(path: Path | None) -> list[Fact]:
    if path is not None:
        return read_facts(path)
    from lightning_edit.atlas.graph import load_atlas
    from lightning_edit.atlas.requests import make_requests

    requests = make_requests(load_atlas(), 0, "test")
    return [fact for request in requests if (fact := of_request(request)) is not None]


def _trace(
    options: argparse.Namespace, facts: list[Fact], folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trace facts up to ``--limit`` known ones; return the run's record and the traced rows."""
    from lightning_edit.analysis.tracing.restore import Tracer, embedding_std
    from lightning_edit.analysis.tracing.rows import TraceRows
    from lightning_edit.models.view import resolve
    from lightning_edit.models.weights import weights_hash

    model, encoder = load_model(options)
    view, tokenizer, form = resolve(model), encoder.tokenizer, encoder.form
    prepared = [_tokenise_fact(encoder, fact) for fact in facts]
    usable = [one for one in prepared if not isinstance(one, str)]
    if not usable:
        raise ConfigError(f"no fact can be traced; of the first one: {prepared[0]}")
    scale = options.noise * embedding_std(view, usable)
    width = options.window or max(1, round(_WINDOW * view.num_blocks))
    tracer = Tracer(
        view, scale, options.samples, width, rows_per_pass=options.batch_rows, seed=options.seed
    )
    record = {
        "language_model": {
            "name": options.lm,
            "dtype": options.lm_dtype,
            "bos": options.lm_bos,
            **({"prompts": form.to_dict()} if form.chat or form.end_answers else {}),
            "sha256": weights_hash(model),
            "blocks": view.num_blocks,
        },
        "facts": {
            "source": str(options.facts or "atlas"),
            "sha256": _digest([asdict(fact) for fact in facts]),
        },
        "noise": {"multiple": options.noise, "standard_deviation": round(scale, 6)},
        "samples": options.samples,
        "window": width,
        "seed": options.seed,
    }
    trace_rows = TraceRows(folder, record)
    with _progress_bar(min(options.limit, len(facts))) as step:
        for number, (fact, tokens) in enumerate(zip(facts, prepared, strict=True)):
            if trace_rows.known >= options.limit:
                break
            if number >= len(trace_rows.rows):
                trace_rows.append([_trace_fact(tracer, tokenizer, fact, tokens)])
            step(trace_rows.known_before(number + 1))
    return record | trace_rows.counts(options.limit), trace_rows.traced(options.limit)


def _tokenise_fact(encoder: "PromptEncoder", fact: Fact) -> "Prepared | str":
    """Tokenise a fact, or return the reason why it cannot be traced; not fatal."""
    from lightning_edit.analysis.tracing.restore import Prepared

    try:
        return Prepared.of(encoder, fact)
    except DataError as error:
        return str(error)


def _trace_fact(
    tracer: "Tracer", tokenizer: Any, fact: Fact, tokens: "Prepared | str"
) -> dict[str, Any]:
    """Trace one fact; for a fact that the model does not know, return its prediction instead."""
    row = {"prompt": fact.prompt, "subject": fact.subject, "answer": fact.answer}
    if isinstance(tokens, str):
        return row | {"impossible": tokens}
    predicted = tracer.predicted(tokens)
    if predicted != tokens.answer:
        return row | {"says": tokenizer.decode([predicted])}
    found = tracer.trace(tokens)
    effects = {
        kind: [[round(value, 6) for value in line] for line in table.tolist()]
        for kind, table in found.indirect.items()
    }
    return row | {
        "tokens": [tokenizer.decode([token]) for token in tokens.ids[tokens.subject.start :]],
        "subject_tokens": len(tokens.subject),
        "clean": round(found.clean, 6),
        "corrupted": round(found.corrupted, 6),
        "effects": effects,
    }


def _digest(value: Any) -> str:
    from hashlib import sha256

    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _progress_bar(total: int) -> Any:
    """Show a progress bar of traced facts, with the remaining time."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from lightning_edit.report.console import VisibleConsole

    columns = (TextColumn("Tracing"), BarColumn(), MofNCompleteColumn(), TextColumn("facts"))

    @contextmanager
    def shown() -> Iterator[Any]:
        with Progress(
            *columns, Remaining(), console=VisibleConsole(stderr=True), transient=True
        ) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=done)

    return shown()
