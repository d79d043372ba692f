"""``lightning-edit tune``: hyperparameter search for an editor on a user's own model."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_edit.analysis.sweep.layers import candidates
from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.analysis.tuning.arguments import Argument, arguments_of
from lightning_edit.analysis.tuning.choices import LAYERS, Choices
from lightning_edit.analysis.tuning.result import TuningResult
from lightning_edit.analysis.tuning.search import Settings, pareto, require_optuna
from lightning_edit.analysis.tuning.settings_file import settings_yaml
from lightning_edit.analysis.tuning.space import AUTO
from lightning_edit.analysis.tuning.trial import GIVEN_UP, SettingsTrial, hopeless
from lightning_edit.analysis.tuning.tuning import Tuning
from lightning_edit.cli.lightning import model_options
from lightning_edit.cli.study_options import (
    Study,
    editor_name,
    innermost_editor,
    layer_argument,
    layer_count,
    layer_value,
    own_sites,
    require_layers,
    study_parser,
)
from lightning_edit.cli.study_trials import IMPOSSIBLE, run_trial, why_impossible
from lightning_edit.editors.arguments import kept_values
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.wrappers.base import WrappedEditor
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import (
    ArchitectureError,
    ConfigError,
    StatisticsNotFoundError,
)
from lightning_edit.functional.visible import visible
from lightning_edit.models.view import resolve
from lightning_edit.report import sweep_plots
from lightning_edit.statistics.cache import files_for
from lightning_edit.storage.study_rows import ResumableRows

_VERB = "tune"
_DESCRIPTION = (
    "Search settings of an editor for your model: layers, strength, bounds and steps, by the "
    "harmonic mean of reliability, generalization and locality on facts that you do not edit "
    "afterwards. The first trial has the editor's own settings, so that the table shows what the "
    "search gains; where they are auto, the rule stays one of the choices. It writes a YAML file "
    "for --config: the best trial's settings if they lead the editor's own by a standard error and "
    "more than one fact, and else the own ones, since few facts let luck win. Interrupted or out "
    "of time, it goes on when it is given its folder with --run."
)


def _parser() -> Any:
    parser = study_parser(_VERB, _DESCRIPTION, facts=20)
    group = parser.add_argument_group("Search")
    group.add_argument(
        "--budget",
        type=float,
        default=600.0,
        help="seconds of trials, over all resumes together; the trial that runs then is finished",
    )
    group.add_argument(
        "--trials", type=int | None, default=None, help="most trials; default: what the budget lets"
    )
    group.add_argument(
        "--together",
        type=bool,
        default=False,
        help="write all facts at once, as --protocol batch does, instead of each alone",
    )
    group.add_argument(
        "--only",
        type=list[str] | None,
        default=None,
        help="settings to search, such as '[layers,lr]'; default: layers and every setting that "
        "depends on the scale of a model",
    )
    group.add_argument(
        "--space",
        type=dict[str, list[float]] | None,
        default=None,
        help="smallest and largest number of settings, such as '{lr: [1e-4, 1e-2]}'; a setting "
        "that is auto may also stay so",
    )
    group.add_argument(
        "--candidates",
        type=list[int | list[int]] | None,
        default=None,
        help="layers to choose from, as in `sweep`; default: every window whose statistics are "
        "there",
    )
    group.add_argument(
        "--out", type=str | None, default=None, help="YAML file; default: METHOD.yaml in the folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-edit tune``.

    Args:
        argv: Arguments after ``tune``; ``None`` reads ``sys.argv``. An editor's name may come
            first, instead of ``--model NAME``.

    Returns:
        Exit status: 0, or 1 when interrupted.

    Raises:
        LightningEditError: An error that the user can fix; the caller prints it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-"):
        given = ["--model", *given]
    parser = _parser()
    if not {"-h", "--help"} & set(given):
        require_optuna()
    study = Study.from_arguments(parser, given, _VERB)
    _require_file(study.config.out)
    sweep_plots.check_formats(study.config.figures)
    if study.config.budget <= 0:
        raise ConfigError(f"--budget is in seconds, above 0; got {study.config.budget}")
    if study.config.trials is not None and study.config.trials < 1:
        raise ConfigError(f"--trials must be 1 or more, got {study.config.trials}")
    tuning = _open(study)
    try:
        _run(study, tuning)
    except KeyboardInterrupt:
        if tuning.tried:
            _show(study, TuningResult.of(tuning), tuning.choices)
        line = study.resume_line(_VERB)
        sys.stderr.write(f"Interrupted. Finished trials are kept; go on with\n  {line}\n")
        return 1
    _show(study, TuningResult.of(tuning), tuning.choices)
    return 0


def _require_file(out: str | None) -> None:
    """Refuse a file that could not be written after the search.

    Raises:
        ConfigError: If it is a folder, or one of its folders is a file.
    """
    if out is None:
        return
    above = next((one for one in Path(out).parents if one.exists()), Path())
    if Path(out).is_dir() or not above.is_dir():
        what = out if Path(out).is_dir() else above
        kind = "a folder" if Path(out).is_dir() else "a file, where a folder is needed"
        raise ConfigError(f"--out is the path of a YAML file, got {out}: {what} is {kind}")


# ------------------------------------------------------------------------------------------ search


def _open(study: Study) -> Tuning:
    """Return the search of a study, with what it has tried already."""
    config = study.config
    host, _ = innermost_editor(study.editor)
    arguments = _arguments(study)
    values = {name: one.value for name, one in arguments.items()}
    kinds = {name: one.kind for name, one in arguments.items()}
    windows: list[list[int]] = []
    argument = layer_argument(host)
    names = config.only
    if argument is not None and (names is None or {LAYERS, argument} & set(names)):
        windows = _windows(study, host, values.get(argument))
    elif config.candidates is not None:
        raise ConfigError(
            f"--candidates are layers, but {editor_name(study.editor)} has no argument for them"
            if argument is None
            else f"--candidates are layers, but --only does not name `{LAYERS}`; add it"
        )
    if names is not None:  # `layer` of an editor of one is searched as layers are
        names = [LAYERS if name == argument else name for name in names]
    own = _own_layers(study, host)
    choices = Choices.of(values, windows, own, config.space, names, kinds)
    if not choices.space:
        raise ConfigError(
            f"{editor_name(study.editor)} has no setting whose value depends on a model's scale, "
            "so there is nothing to search by default; --only and --space take its numbers by name"
        )
    identity = study.identity() | choices.to_row() | {"together": config.together}
    study.folder.path.mkdir(parents=True, exist_ok=True)
    rows = ResumableRows(study.folder.path / "tune.jsonl", identity)
    return Tuning(choices, config.seed, rows)


def _run(study: Study, tuning: Tuning) -> None:
    """Try settings until the budget or the number of trials is used up."""
    config, evaluation, arguments = study.config, study.evaluation(), _arguments(study)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    done = tuning.is_over(config.budget, config.trials)
    with Progress(*columns, console=Console(stderr=True), disable=done) as bar:
        task = bar.add_task("", total=config.budget, completed=int(tuning.spent))
        while not tuning.is_over(config.budget, config.trials):
            text = f"Trial {len(tuning.tried) + 1}, best so far {tuning.best_score:.3f}"
            bar.update(task, description=text, completed=tuning.spent)
            began, spent = time.perf_counter(), tuning.spent

            def advance(began: float = began, spent: float = spent) -> None:
                bar.update(task, completed=spent + time.perf_counter() - began)

            def attempt(
                layers: list[int], numbers: Settings, advance: Callable[[], None] = advance
            ) -> SettingsTrial:
                options = _options(study, tuning.choices, arguments, layers, numbers)
                found = _Attempt(study, arguments, evaluation, advance)
                begins = tuning.choices.begins_with_own
                before = tuning.tried[0].outcomes if begins and tuning.tried else []
                own = begins and not tuning.tried
                return found.run(options, layers, numbers, before, own=own)

            tuning.step(attempt)


@dataclass(frozen=True)
class _Attempt:
    study: Study
    arguments: Mapping[str, Argument]
    evaluation: Evaluation
    advance: Callable[[], None]

    def run(
        self,
        options: list[str],
        layers: list[int],
        numbers: Settings,
        before: Sequence[CaseScores],
        *,
        own: bool,
    ) -> SettingsTrial:
        """Edit and score every case with settings; a result too where they are impossible."""
        study = self.study
        try:
            editor = study.editor_with(*options)
            outcomes, seconds = run_trial(
                study,
                editor,
                self.evaluation,
                self.advance,
                together=study.config.together,
                give_up=lambda scores: hopeless(scores, before),
            )
        except IMPOSSIBLE as error:
            # Where the editor's own settings do not fit the model, no other trial would help.
            if own and isinstance(error, ArchitectureError | ConfigError):
                raise
            return SettingsTrial(layers, [], failed=why_impossible(error), settings=numbers)
        if len(outcomes) < len(study.cases):
            return SettingsTrial(layers, [], seconds, GIVEN_UP, numbers)
        return SettingsTrial(
            layers, outcomes, seconds, None, numbers, self._chosen(editor, numbers)
        )

    def _chosen(self, editor: Editor, numbers: Settings) -> dict[str, Any]:
        """Return what ``auto`` was in the editor, by the names of the settings."""
        levels = _levels(editor)
        found = {}
        for name, value in numbers.items():
            if value != AUTO:
                continue
            one = self.arguments[name]
            level = levels[one.depth]
            # Beside a number an editor may keep a published number as the argument itself.
            decided = level.chosen.get(one.name, kept_values(level).get(one.name))
            if decided not in (None, AUTO):
                found[name] = decided
        return found


def _options(
    study: Study,
    choices: Choices,
    arguments: Mapping[str, Argument],
    layers: Sequence[int],
    numbers: Settings,
) -> list[str]:
    """Return settings as options of ``edit``; layers are named where they are searched."""
    host, found = innermost_editor(study.editor)
    if choices.windows:
        name = layer_argument(host) or LAYERS
        found += [arguments[name].option, json.dumps(layer_value(name, layers))]
    for name, value in numbers.items():
        found += [arguments[name].option, str(value)]
    return found


def _arguments(study: Study) -> dict[str, Argument]:
    """Return the arguments of the editor and of its hosts as configured, with their defaults."""
    kinds = [type(one) for one in _levels(study.editor)]
    return arguments_of(study.configured_editor().as_dict(), kinds)


def _levels(editor: Editor) -> list[Editor]:
    """Return an editor and the editors that it wraps, the outermost first."""
    inner = _levels(editor.editor) if isinstance(editor, WrappedEditor) else []
    return [editor, *inner]


def _own_layers(study: Study, host: Editor) -> list[int]:
    """Return the layers that the editor edits by itself."""
    argument = layer_argument(host)
    given = None if argument is None else getattr(host, argument)
    if isinstance(given, int):  # an editor of one block has an argument for it alone
        given = [given]
    if given is None and argument == "layer":
        given = own_sites(study.model, host)[0] or None
    return list(host.layers_for_null(resolve(study.model).num_blocks) if given is None else given)


def _windows(study: Study, host: Editor, given: Sequence[int] | int | None) -> list[list[int]]:
    """Return the choices of layers: as many together as the editor edits by itself."""
    blocks = layer_count(study.model, host)
    own = _own_layers(study, host)
    width = len(own) if 0 < len(own) < blocks else 1
    if len(own) >= blocks and given is None and study.config.candidates is None:
        return []  # every layer at once is what the editor does
    chosen = candidates(blocks, width, study.config.candidates)
    require_layers(host, chosen)
    if not isinstance(host, LocateThenEdit):
        return chosen
    tokenizer = study.prompts.tokenizer
    found = []
    for layers in chosen:
        try:
            files_for(study.model, tokenizer, layers, host.statistics)
        except StatisticsNotFoundError:
            continue
        found.append(layers)
    if not found:  # the error that names what is missing
        files_for(study.model, tokenizer, own, host.statistics)
    return found


# ------------------------------------------------------------------------------------------ output


def _show(study: Study, result: TuningResult, choices: Choices) -> None:
    console = Console(highlight=False)
    for line in result.failures():
        console.print(visible(line), soft_wrap=True, markup=False)
    if not result.ranked:
        raise ConfigError("no settings could be tried; see the reasons above")
    title = visible(_title(study, len(result.tried)))
    console.print(result.table(escape(title), study.mode))
    for line in result.settings():
        console.print(visible(line), soft_wrap=True, markup=False)
    console.print(result.advice(len(study.cases)), soft_wrap=True)
    out = Path(study.config.out or study.folder.path / f"{type(study.editor).__name__}.yaml")
    if result.written is not None:
        # Through JSON, where what is not plain becomes text.
        configured = json.loads(json.dumps(study.configured_editor().as_dict(), default=str))
        argument = layer_argument(innermost_editor(study.editor)[0]) if choices.windows else None
        text = settings_yaml(
            configured,
            _arguments(study),
            result.written,
            title,
            layers=argument,
            own=result.written is result.own,
        )
        study.write(out, text.encode())
    files = [study.folder.path / "tune.jsonl"]
    if sweep_plots.available() and result.points():
        files += _plot(study, result, title)
    console.print(visible("Files: " + ", ".join(map(str, files))), soft_wrap=True, markup=False)
    if result.written is not None:
        same_model = shlex.join(model_options(study.parser, study.config))
        line = f"To edit with them: lightning-edit edit --config {out} {same_model} --data …"
        console.print(visible(line), soft_wrap=True, markup=False)


def _title(study: Study, trials: int) -> str:
    model = str(study.config.lm).rstrip("/").rpartition("/")[2]
    how = "all at once" if study.config.together else "each alone"
    mode = "teacher forced" if study.mode == "tf" else "generated"
    return (
        f"{editor_name(study.editor)} on {model}: {trials} trials of "
        f"{len(study.cases)} facts of {study.split}, {how}, {mode}"
    )


def _plot(study: Study, result: TuningResult, title: str) -> list[Path]:
    points = result.points()
    own = None if result.own is None else result.ranked.index(result.own)
    best = None if result.best is None else 0
    figure = sweep_plots.success_against_locality(points, pareto(points), best, own, title)
    return sweep_plots.save(figure, study.folder.path / "tune", study.config.figures)
