"""``lightning-edit sweep``: layer search, i.e. an editor tried at every layer of a model."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_edit.analysis.sweep.layers import LayerTrial, RankedTrial, candidates, rate
from lightning_edit.analysis.sweep.measure import ASPECTS
from lightning_edit.analysis.sweep.table import BEST, TIED, ScoreRow, score_table
from lightning_edit.cli.study_options import (
    Study,
    editor_name,
    innermost_editor,
    layer_argument,
    layer_count,
    layer_value,
    require_layers,
    study_parser,
)
from lightning_edit.cli.study_trials import IMPOSSIBLE, run_trial, why_impossible
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.visible import visible
from lightning_edit.report import sweep_plots
from lightning_edit.report.sweep_plots import label
from lightning_edit.statistics.cache import files_for
from lightning_edit.storage.study_rows import require_same
from lightning_edit.types import Mode

_VERB = "sweep"
_DESCRIPTION = (
    "Try an editor at every layer of a model: edit each fact alone, see whether the edit took, "
    "generalised and left other answers alone, and show which layers do best. An interrupted "
    "sweep is resumed when it is given its folder with --run. Layers are chosen here, so report "
    "results on other facts; docs/layers.md."
)


def _parser() -> Any:
    parser = study_parser(_VERB, _DESCRIPTION, facts=20)
    group = parser.add_argument_group("Layers")
    group.add_argument(
        "--candidates",
        type=list[int | list[int]] | None,
        default=None,
        help="layers to try, such as '[3,4]' or '[[3,4],[5,6,7]]'; default: all. A number is the "
        "first layer of a window",
    )
    group.add_argument(
        "--width",
        type=int | None,
        default=None,
        help="layers edited together; default: as many as the editor edits by default",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit sweep``.

    Args:
        argv: Arguments after ``sweep``; ``None`` reads ``sys.argv``.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    study = Study.from_arguments(_parser(), list(sys.argv[1:] if argv is None else argv), _VERB)
    sweep_plots.check_formats(study.config.figures)
    host, options = innermost_editor(study.editor)
    argument = layer_argument(host)
    if argument is None:
        raise ConfigError(
            f"{type(host).__name__} has no argument `layers` or `layer`, so there is nothing to "
            "sweep"
        )
    blocks = layer_count(study.model, host)
    width = study.config.width or _width(type(host), blocks)
    chosen = candidates(blocks, width, study.config.candidates)
    require_layers(host, chosen)
    if isinstance(host, LocateThenEdit):
        # One call for all layers, so that the error names every missing statistic.
        all_layers = sorted({layer for layers in chosen for layer in layers})
        files_for(study.model, study.prompts.tokenizer, all_layers, host.statistics)
    options.append("--model" + ".editor" * (len(options) // 2) + f".{argument}")

    def editor_at(layers: list[int]) -> Editor:
        return study.editor_with(*options, json.dumps(layer_value(argument, layers)))

    try:
        trials = _sweep(study, chosen, editor_at)
    except KeyboardInterrupt:
        line = study.resume_line(_VERB)
        sys.stderr.write(f"Interrupted. Finished layers are kept; go on with\n  {line}\n")
        return 1
    _show(study, trials, options)
    return 0


def _width(host: type[Editor], blocks: int) -> int:
    """Return the number of layers an editor edits by default; 1 if it edits all of them."""
    width = len(host.layers_for_null(blocks))
    return width if 0 < width < blocks else 1


def _sweep(
    study: Study, chosen: list[list[int]], editor_at: Callable[[list[int]], Editor]
) -> list[LayerTrial]:
    """Run the unfinished layer trials; write the record after each."""
    path, identity = study.folder.path / "sweep.json", study.identity()
    record = json.loads(path.read_text()) if path.exists() else None
    if record is not None:
        require_same(record["study"], identity, path)
    trials = [LayerTrial.from_row(row) for row in record["tried"]] if record else []
    evaluation = study.evaluation()
    done = [one.layers for one in trials]
    pending = [layers for layers in chosen if layers not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TextColumn("edits"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not pending,
    ) as bar:
        task = bar.add_task("", total=len(pending) * len(study.cases))
        for number, layers in enumerate(pending):
            bar.update(task, description=f"Layer {label(layers)}")
            advance = _advance_callback(bar, task)
            trials.append(_run_trial(study, editor_at(layers), layers, evaluation, advance))
            bar.update(task, completed=(number + 1) * len(study.cases))
            rows = [one.to_row() for one in trials]
            ranked = [one.to_row() for one in rate(trials, study.config.seed)]
            kept = {"schema": 1, "study": identity, "rated": ranked, "tried": rows}
            study.write(path, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    return [one for one in trials if one.layers in chosen]


def _advance_callback(bar: Progress, task: Any) -> Callable[[], None]:
    return lambda: bar.advance(task)


def _run_trial(
    study: Study,
    editor: Editor,
    layers: list[int],
    evaluation: Evaluation,
    advance: Callable[[], None],
) -> LayerTrial:
    """Edit and score every case alone at one choice of layers."""
    try:
        outcomes, seconds = run_trial(study, editor, evaluation, advance)
    except IMPOSSIBLE as error:
        # A layer that cannot be edited is a result; the sweep continues with the others.
        return LayerTrial(layers, [], failed=why_impossible(error))
    return LayerTrial(layers, outcomes, seconds)


def _show(study: Study, trials: Sequence[LayerTrial], options: Sequence[str]) -> None:
    """Print the table, save the plot, and print the options for the best layers."""
    console = Console(highlight=False)
    ranked = rate(trials, study.config.seed)
    reasons: dict[str, list[str]] = {}
    for one in trials:
        if one.failed is not None:
            reasons.setdefault(one.failed, []).append(label(one.layers))
    for reason, where in reasons.items():
        line = f"Layer {', '.join(where)} could not be edited: {reason}"
        console.print(visible(line), soft_wrap=True, markup=False)
    if not ranked:
        raise ConfigError("no layer could be edited; see the reasons above")
    title = visible(_title(study))
    console.print(_table(ranked, escape(title), study.mode))
    console.print(_advice(ranked, len(study.cases)), soft_wrap=True)
    files = [study.folder.path / "sweep.json"]
    if sweep_plots.available():
        files += _plot(study, ranked, title)
    named = visible("Files: " + ", ".join(map(str, files)))
    console.print(named, soft_wrap=True, markup=False)
    if ranked[0].score == 0:
        return
    *host, option = options
    value = layer_value(option.rpartition(".")[2], ranked[0].tried.layers)
    line = " ".join([*host, option, shlex.quote(json.dumps(value))])
    console.print(visible(f"To edit there: {line}"), soft_wrap=True, markup=False)


def _title(study: Study) -> str:
    model = str(study.config.lm).rstrip("/").rpartition("/")[2]
    count = len(study.cases)
    noun = "fact" if count == 1 else "facts"
    return (
        f"{editor_name(study.editor)} on {model}: {count} {noun} of {study.split}, each alone, "
        f"{'teacher forced' if study.mode == 'tf' else 'generated'}"
    )


def _table(ranked: Sequence[RankedTrial], title: str, mode: Mode) -> Table:
    best = ranked[0]

    def mark(one: RankedTrial) -> str:
        return "" if best.score == 0 else BEST if one is best else TIED if one.ties else ""

    ordered = sorted(ranked, key=lambda one: one.tried.layers)
    rows = [ScoreRow.of(mark(one), label(one.tried.layers), one) for one in ordered]
    return score_table(title, "layers", rows, mode)


def _advice(ranked: Sequence[RankedTrial], facts: int) -> str:
    if ranked[0].score == 0:
        return (
            "No best layer: at each of them one of the shares is 0. Look for other settings of the "
            "editor first, such as more steps or a looser bound."
        )
    ties = [label(one.tried.layers) for one in ranked[1:] if one.ties]
    text = (
        f"★ best; ± is the standard error of the harmonic mean over {facts} "
        f"{'fact' if facts == 1 else 'facts'}. "
    )
    if ties:
        text += (
            f"≈ {', '.join(ties)}: the difference to the best is within its own spread and means "
            "nothing; more --facts would tell."
        )
    elif len(ranked) > 1:
        text += "Every other choice is worse by more than two standard errors of the difference."
    return text


def _plot(study: Study, ranked: Sequence[RankedTrial], title: str) -> list[Path]:
    ordered = sorted(ranked, key=lambda entry: entry.tried.layers)
    aspects = [aspect for aspect in ASPECTS if aspect in ranked[0].means]
    figure = sweep_plots.quality_over_layers(
        [one.tried.layers for one in ordered],
        {aspect: [one.means[aspect] for one in ordered] for aspect in aspects},
        [one.score for one in ordered],
        [one.spread for one in ordered],
        ordered.index(ranked[0]),
        title,
    )
    return sweep_plots.save(figure, study.folder.path / "sweep", study.config.figures)
