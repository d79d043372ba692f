"""The verb ``sweep``: which layers of a model an editor should edit."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_edit.analysis.sweep.layers import LayerTrial, RankedTrial, candidates, rate
from lightning_edit.analysis.sweep.measure import ASPECTS, CaseScores, found_alone
from lightning_edit.cli.study_options import Study, host_of, name_of, study_parser
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.edits.ledger import Ledger
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError, LedgerError, SolveError
from lightning_edit.models.view import resolve
from lightning_edit.report import sweep_plots
from lightning_edit.report.sweep_plots import label
from lightning_edit.statistics.cache import files_for
from lightning_edit.storage.study_rows import require_same

_VERB = "sweep"
_DESCRIPTION = (
    "Try an editor at every layer of a model: edit each fact alone, see whether the edit took, "
    "generalised and left other answers alone, and show which layers do best. An interrupted "
    "sweep goes on when it is given its folder with --run. Layers are chosen here, so report "
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
    """Run the verb.

    Args:
        argv: Arguments after ``sweep``; ``None``: those of the process.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: What the user can mend; the caller prints it.
    """
    study = Study.of(_parser(), list(sys.argv[1:] if argv is None else argv), _VERB)
    sweep_plots.check_formats(study.config.figures)
    host, options = host_of(study.editor)
    if not hasattr(host, "layers"):
        raise ConfigError(
            f"{type(host).__name__} has no argument `layers`, so there is nothing to sweep"
        )
    blocks = resolve(study.model).num_blocks
    width = study.config.width or _width(type(host), blocks)
    chosen = candidates(blocks, width, study.config.candidates)
    if isinstance(host, LocateThenEdit):
        # Asked for together, so that the error about missing ones names all of them.
        every = sorted({layer for layers in chosen for layer in layers})
        files_for(study.model, study.tokenizer, every, host.statistics)
    options.append("--model" + ".editor" * (len(options) // 2) + ".layers")
    try:
        tried = _sweep(
            study, chosen, lambda layers: study.editor_with(*options, json.dumps(layers))
        )
    except KeyboardInterrupt:
        line = study.resume_line(_VERB)
        sys.stderr.write(f"Interrupted. Finished layers are kept; go on with\n  {line}\n")
        return 1
    _show(study, tried, options)
    return 0


def _width(host: type[Editor], blocks: int) -> int:
    """Return how many layers an editor edits by default; one if it works on all of them."""
    width = len(host.default_layers(blocks))
    return width if 0 < width < blocks else 1


def _sweep(
    study: Study, chosen: list[list[int]], editor_at: Callable[[list[int]], Editor]
) -> list[LayerTrial]:
    """Measure what has not been measured yet, and keep each choice as soon as it is done."""
    path, facts = study.folder.path / "sweep.json", study.facts()
    record = json.loads(path.read_text()) if path.exists() else None
    if record is not None:
        require_same(record["study"], facts, path)
    tried = [LayerTrial.from_row(row) for row in record["tried"]] if record else []
    evaluation = study.evaluation()
    done = [one.layers for one in tried]
    waiting = [layers for layers in chosen if layers not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TextColumn("edits"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not waiting,
    ) as bar:
        task = bar.add_task("", total=len(waiting) * len(study.cases))
        for number, layers in enumerate(waiting):
            bar.update(task, description=f"Layer {label(layers)}")
            advance = _advancing(bar, task)
            tried.append(_try(study, editor_at(layers), layers, evaluation, advance))
            bar.update(task, completed=(number + 1) * len(study.cases))
            rows = [one.to_row() for one in tried]
            rated = [one.to_row() for one in rate(tried, study.config.seed)]
            kept = {"schema": 1, "study": facts, "rated": rated, "tried": rows}
            study.write(path, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    return [one for one in tried if one.layers in chosen]


def _advancing(bar: Progress, task: Any) -> Callable[[], None]:
    return lambda: bar.advance(task)


def _try(
    study: Study,
    editor: Editor,
    layers: list[int],
    evaluation: Evaluation,
    advance: Callable[[], None],
) -> LayerTrial:
    """Edit every case alone at some layers."""
    torch.manual_seed(study.config.seed)
    editor.to(study.model.device)
    editor.bind(study.model, study.tokenizer)
    ledger = Ledger(study.model, editor)
    outcomes, seconds, begin = [], 0.0, time.perf_counter()
    try:
        together = study.config.batch_size
        for case, delta in found_alone(editor, study.cases, study.config.seed, together):
            seconds += time.perf_counter() - begin
            ledger.commit(delta, case)
            outcomes.append(CaseScores.of(evaluation.scores(case), study.mode))
            ledger.undo(ledger.request_ids)
            advance()
            begin = time.perf_counter()
    except (SolveError, LedgerError) as error:
        # One impossible layer is a result; the others are still wanted.
        ledger.undo(ledger.request_ids)
        return LayerTrial(layers, [], failed=str(error))
    return LayerTrial(layers, outcomes, seconds / len(study.cases))


def _show(study: Study, tried: Sequence[LayerTrial], options: Sequence[str]) -> None:
    """Print the table, draw the plot, and say what to type."""
    console = Console(highlight=False)
    rated = rate(tried, study.config.seed)
    for one in tried:
        if one.failed is not None:
            console.print(f"Layer {label(one.layers)} could not be edited: {one.failed}")
    if not rated:
        raise ConfigError("no layer could be edited; see the reasons above")
    title = _title(study)
    console.print(_table(rated, title))
    console.print(_advice(rated, len(study.cases)), soft_wrap=True)
    files = [study.folder.path / "sweep.json"]
    if sweep_plots.available():
        files += _plot(study, rated, title)
    console.print("Files: " + ", ".join(map(str, files)), soft_wrap=True, markup=False)
    if rated[0].score == 0:
        return
    *host, option = options
    line = " ".join([*host, option, f"'{json.dumps(rated[0].tried.layers)}'"])
    console.print(f"To edit there: {line}", soft_wrap=True, markup=False)


def _title(study: Study) -> str:
    model = str(study.config.lm).rstrip("/").rpartition("/")[2]
    count = len(study.cases)
    noun = "fact" if count == 1 else "facts"
    return (
        f"{name_of(study.editor)} on {model}: {count} {noun} of {study.split}, each alone, "
        f"{'teacher forced' if study.mode == 'tf' else 'generated'}"
    )


def _table(rated: Sequence[RankedTrial], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("layers", justify="right")
    aspects = [aspect for aspect in ASPECTS if aspect in rated[0].means]
    for aspect in aspects:
        table.add_column(f"{aspect}\n{ASPECTS[aspect]}", justify="right", no_wrap=True)
    table.add_column("harmonic\nmean", justify="right", style="bold")
    table.add_column("±", justify="right", style="dim")
    table.add_column("s/edit", justify="right")
    best = rated[0]
    for one in sorted(rated, key=lambda entry: entry.tried.layers):
        mark = "" if best.score == 0 else "★" if one is best else "≈" if one.ties else ""
        cells = [f"{one.means[aspect]:.3f}" for aspect in aspects]
        table.add_row(
            mark,
            label(one.tried.layers),
            *cells,
            f"{one.score:.3f}",
            f"{one.spread:.3f}",
            f"{one.tried.seconds:.2g}",
            style="bold green" if mark == "★" else None,
        )
    return table


def _advice(rated: Sequence[RankedTrial], facts: int) -> str:
    if rated[0].score == 0:
        return (
            "No best layer: at each of them one of the shares is 0. Look for other settings of the "
            "editor first, such as more steps or a looser bound."
        )
    ties = [label(one.tried.layers) for one in rated[1:] if one.ties]
    text = (
        f"★ best; ± is the standard error of the harmonic mean over {facts} "
        f"{'fact' if facts == 1 else 'facts'}. "
    )
    if ties:
        text += (
            f"≈ {', '.join(ties)}: the difference to the best is within its own spread and means "
            "nothing; more --facts would tell."
        )
    elif len(rated) > 1:
        text += "Every other choice is worse by more than two standard errors of the difference."
    return text


def _plot(study: Study, rated: Sequence[RankedTrial], title: str) -> list[Path]:
    ordered = sorted(rated, key=lambda entry: entry.tried.layers)
    aspects = [aspect for aspect in ASPECTS if aspect in rated[0].means]
    figure = sweep_plots.quality_over_layers(
        [one.tried.layers for one in ordered],
        {aspect: [one.means[aspect] for one in ordered] for aspect in aspects},
        [one.score for one in ordered],
        [one.spread for one in ordered],
        ordered.index(rated[0]),
        title,
    )
    return sweep_plots.save(figure, study.folder.path / "sweep", study.config.figures)
