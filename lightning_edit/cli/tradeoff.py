"""``lightning-edit tradeoff``: edit success against locality, over 1-LI's interpolation α."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_edit.analysis.sweep.measure import ASPECTS
from lightning_edit.analysis.sweep.table import BEST, ScoreRow, score_table
from lightning_edit.analysis.sweep.tradeoff import Outcomes, Point, at_weights, check_weights
from lightning_edit.cli.study_options import Study, editor_name, study_parser
from lightning_edit.editors.wrappers.one_li import OneLI
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edit_loop import deltas_alone, encode_cases
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.visible import visible
from lightning_edit.report import sweep_plots
from lightning_edit.types import Mode

_VERB = "tradeoff"
_DESCRIPTION = (
    "Go only part of the way from the original to the edited weights (1-LI, arXiv 2303.00046), and "
    "see what the edit loses and what locality gains. Each edit is computed once and scored at "
    "every weight. --model is the host, such as ROME, or OneLI around one. An interrupted study "
    "is resumed when it is given its folder with --run. Report a weight chosen here on other "
    "facts; docs/layers.md."
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
    """Run ``lightning-edit tradeoff``.

    Args:
        argv: Arguments after ``tradeoff``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    study = Study.from_arguments(_parser(), list(sys.argv[1:] if argv is None else argv), _VERB)
    sweep_plots.check_formats(study.config.figures)
    weights = check_weights(study.config.weights)
    protocol = study.config.protocol
    if protocol not in ("single", "batch"):
        raise ConfigError(f"--protocol must be single or batch, got {protocol!r}")
    if not study.editor.edits_weights:
        raise ConfigError(
            f"{type(study.editor).__name__} acts at run time, so there are no weights to "
            "interpolate; give an editor whose `edits_weights` is true"
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
    identity = {**study.identity(), "weights": weights, "protocol": protocol}
    outcomes = Outcomes(study.folder.path / "tradeoff.jsonl", identity)
    evaluation = study.evaluation()
    # Use the full update of 1-LI's host; this command does the scaling.
    host = study.editor.editor if isinstance(study.editor, OneLI) else study.editor
    pending = [case for case in study.cases if case[0].id not in outcomes.cases]
    if pending:
        torch.manual_seed(study.config.seed)
        host.to(study.model.device)
        host.bind(study.model, study.prompts)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            if protocol == "single":
                _score_single(study, host, pending, weights, evaluation, outcomes, bar)
            else:
                _score_batch(study, host, weights, evaluation, outcomes, bar)
    points = [Point.of(weight, outcomes.found[weight]) for weight in weights]
    record = {"schema": 1, "study": identity, "points": [point.to_row() for point in points]}
    study.folder.write_json(study.folder.path / "tradeoff.json", record)
    return points


def _score_single(
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
    batches = encode_cases(host.prompts, cases, config.batch_size, config.seed)
    for case, delta in deltas_alone(host, batches):
        found = at_weights(study.model, case, delta, weights, evaluation, study.mode)
        outcomes.add(dict(found))
        bar.advance(task)


def _score_batch(
    study: Study,
    host: Any,
    weights: list[float],
    evaluation: Evaluation,
    outcomes: Outcomes,
    bar: Progress,
) -> None:
    """Score one batch edit of all cases at every weight; its delta is saved for a resumed study."""
    task = bar.add_task("Weights", total=len(weights))
    path = study.folder.path / "host.safetensors"
    requests = [request for case in study.cases for request in case]
    batch = encode_batch(study.prompts, requests, study.config.seed)
    if path.exists():
        delta = Delta.load(path, study.model.device)
    else:
        delta = host.edit(batch)
        delta.save(path)
    found = {}
    for weight, scored in at_weights(study.model, batch, delta, weights, evaluation, study.mode):
        found[weight] = scored
        bar.advance(task)
    outcomes.add(found)


def _show(study: Study, points: Sequence[Point], protocol: str) -> None:
    console = Console(highlight=False)
    name = str(study.config.lm).rstrip("/").rpartition("/")[2]
    how = "each alone" if protocol == "single" else "all at once"
    title = visible(f"{editor_name(study.editor)} on {name}: {len(study.cases)} facts, {how}")
    best = max(points, key=lambda point: point.score)
    console.print(_table(points, best, escape(title), study.mode))
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
    named = visible("Files: " + ", ".join(map(str, files)))
    console.print(named, soft_wrap=True, markup=False)
    console.print(f"To edit so: {_option_line(study, best.weight)}", soft_wrap=True, markup=False)


def _option_line(study: Study, weight: float) -> str:
    if isinstance(study.editor, OneLI):
        return f"--model.alpha {weight:g}"
    name = type(study.editor).__name__
    return f"--model OneLI --model.editor {name} --model.alpha {weight:g}"


def _table(points: Sequence[Point], best: Point, title: str, mode: Mode) -> Table:
    rows = [
        ScoreRow(
            BEST if point is best and best.score > 0 else "",
            f"{point.weight:g}",
            point.means,
            point.score,
        )
        for point in points
    ]
    return score_table(title, "α", rows, mode)
