"""The verb ``tradeoff``: an edit's success against its harm, over the length of its step (1-LI)."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_edit.analysis.sweep.measure import ASPECTS, found_alone
from lightning_edit.analysis.sweep.tradeoff import Outcomes, Point, at_weights, check_weights
from lightning_edit.cli.study_options import Study, name_of, study_parser
from lightning_edit.editors.wrappers.one_li import OneLI
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError
from lightning_edit.report import sweep_plots

_VERB = "tradeoff"
_DESCRIPTION = (
    "Go only part of the way from the original to the edited weights (1-LI, arXiv 2303.00046), and "
    "see what the edit loses and what other answers gain. Each edit is found once and scored at "
    "every weight. --model is the host, such as ROME, or OneLI around one. An interrupted study "
    "goes on when it is given its folder with --run. A weight chosen here is to be reported on "
    "other facts; docs/layers.md."
)
_WEIGHTS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def _parser() -> Any:
    parser = study_parser(_VERB, _DESCRIPTION, facts=20)
    group = parser.add_argument_group("Interpolation")
    group.add_argument(
        "--weights",
        type=list[float],
        default=_WEIGHTS,
        help="0: the original weights, 1: the edited ones; default: 0, 0.1, … 1",
    )
    group.add_argument(
        "--protocol",
        type=str,
        default="single",
        help="single: each case alone; batch: all written at once",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``tradeoff``; ``None``: those of the process.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: What the user can mend; the caller prints it.
    """
    study = Study.of(_parser(), list(sys.argv[1:] if argv is None else argv), _VERB)
    sweep_plots.check_formats(study.config.figures)
    weights = check_weights(study.config.weights)
    protocol = study.config.protocol
    if protocol not in ("single", "batch"):
        raise ConfigError(f"--protocol must be single or batch, got {protocol!r}")
    if not study.editor.edits_weights:
        raise ConfigError(
            f"{type(study.editor).__name__} acts at run time, so there are no weights to go part "
            "of the way to; give an editor whose `edits_weights` is true"
        )
    try:
        points = _study(study, weights, protocol)
    except KeyboardInterrupt:
        line = study.resume_line(_VERB)
        sys.stderr.write(f"Interrupted. Finished cases are kept; go on with\n  {line}\n")
        return 1
    _show(study, points, protocol)
    return 0


def _study(study: Study, weights: list[float], protocol: str) -> list[Point]:
    facts = {**study.facts(), "weights": weights, "protocol": protocol}
    outcomes = Outcomes(study.folder.path / "tradeoff.jsonl", facts)
    evaluation = study.evaluation()
    # The whole way is what 1-LI's host does; the command does the scaling.
    host = study.editor.editor if isinstance(study.editor, OneLI) else study.editor
    waiting = [case for case in study.cases if case[0].id not in outcomes.cases]
    if waiting:
        torch.manual_seed(study.config.seed)
        host.to(study.model.device)
        host.bind(study.model, study.tokenizer)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            if protocol == "single":
                _each_alone(study, host, waiting, weights, evaluation, outcomes, bar)
            else:
                _together(study, host, weights, evaluation, outcomes, bar)
    points = [Point.of(weight, outcomes.found[weight]) for weight in weights]
    record = {"schema": 1, "study": facts, "points": [point.to_row() for point in points]}
    study.folder.write_json(study.folder.path / "tradeoff.json", record)
    return points


def _each_alone(
    study: Study,
    host: Any,
    cases: list[Any],
    weights: list[float],
    evaluation: Evaluation,
    outcomes: Outcomes,
    bar: Progress,
) -> None:
    task = bar.add_task("Cases", total=len(cases))
    config = study.config
    for case, delta in found_alone(host, cases, config.seed, config.batch_size):
        found = at_weights(study.model, delta, [case], weights, evaluation, study.mode)
        outcomes.add(dict(found))
        bar.advance(task)


def _together(
    study: Study,
    host: Any,
    weights: list[float],
    evaluation: Evaluation,
    outcomes: Outcomes,
    bar: Progress,
) -> None:
    """Write all cases at once; the edit is kept, so that an interrupted study need not find it."""
    task = bar.add_task("Weights", total=len(weights))
    path = study.folder.path / "host.safetensors"
    if path.exists():
        delta = Delta.load(path, study.model.device)
    else:
        requests = [request for case in study.cases for request in case]
        delta = host.edit(encode_batch(study.tokenizer, requests, study.config.seed))
        delta.save(path)
    found = {}
    for weight, scored in at_weights(
        study.model, delta, study.cases, weights, evaluation, study.mode
    ):
        found[weight] = scored
        bar.advance(task)
    outcomes.add(found)


def _show(study: Study, points: Sequence[Point], protocol: str) -> None:
    console = Console(highlight=False)
    name = str(study.config.lm).rstrip("/").rpartition("/")[2]
    how = "each alone" if protocol == "single" else "all at once"
    title = f"{name_of(study.editor)} on {name}: {len(study.cases)} facts, {how}"
    best = max(points, key=lambda point: point.score)
    console.print(_table(points, best, title))
    console.print(
        f"★ largest harmonic mean, at α = {best.weight:g}. α = 1 is the host's own edit, α = 0 the "
        "original model.",
        soft_wrap=True,
    )
    files: list[Path] = [study.folder.path / "tradeoff.json"]
    if sweep_plots.available():
        means = {
            aspect: [point.means[aspect] for point in points]
            for aspect in ASPECTS
            if aspect in points[0].means
        }
        figure = sweep_plots.over_weights([point.weight for point in points], means, title)
        files += sweep_plots.save(figure, study.folder.path / "tradeoff", study.config.figures)
    console.print("Files: " + ", ".join(map(str, files)), soft_wrap=True, markup=False)
    console.print(f"To edit so: {_line(study, best.weight)}", soft_wrap=True, markup=False)


def _line(study: Study, weight: float) -> str:
    if isinstance(study.editor, OneLI):
        return f"--model.alpha {weight:g}"
    name = type(study.editor).__name__
    return f"--model OneLI --model.editor {name} --model.alpha {weight:g}"


def _table(points: Sequence[Point], best: Point, title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("α", justify="right")
    aspects = [aspect for aspect in ASPECTS if aspect in points[0].means]
    for aspect in aspects:
        table.add_column(f"{aspect}\n{ASPECTS[aspect]}", justify="right", no_wrap=True)
    table.add_column("harmonic\nmean", justify="right", style="bold")
    for point in points:
        cells = [f"{point.means[aspect]:.3f}" for aspect in aspects]
        star = point is best and best.score > 0
        table.add_row(
            "★" if star else "",
            f"{point.weight:g}",
            *cells,
            f"{point.score:.3f}",
            style="bold green" if star else None,
        )
    return table
