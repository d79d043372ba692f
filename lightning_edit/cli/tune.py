"""``lightning-edit tune``: hyperparameter search for an editor on a user's own model."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_edit.analysis.sweep.layers import LayerTrial, RankedTrial, candidates, rate
from lightning_edit.analysis.sweep.measure import ASPECTS, CaseScores, measure_of
from lightning_edit.analysis.tuning.search import Settings, SettingsSearch, pareto, require_optuna
from lightning_edit.analysis.tuning.space import Dimension, search_space
from lightning_edit.cli.study_options import Study, editor_name, innermost_editor, study_parser
from lightning_edit.cli.study_trials import IMPOSSIBLE, run_trial
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.evaluation.evaluator import Evaluation
from lightning_edit.exceptions import ConfigError, StatisticsNotFoundError
from lightning_edit.functional.visible import visible
from lightning_edit.models.view import resolve
from lightning_edit.report import sweep_plots
from lightning_edit.report.sweep_plots import label
from lightning_edit.statistics.cache import files_for
from lightning_edit.storage.study_rows import ResumableRows

_VERB = "tune"
_LAYERS = "layers"
_DESCRIPTION = (
    "Search settings of an editor for your model: layers, strength, bounds and steps, by the "
    "harmonic mean of reliability, generalization and locality on facts that you do not edit "
    "afterwards. The first trial has the editor's own settings, so that the table shows what the "
    "search gains. It writes a YAML file for --config. Interrupted or out of time, it goes on when "
    "it is given its folder with --run."
)


def _parser() -> Any:
    parser = study_parser(_VERB, _DESCRIPTION, facts=20)
    group = parser.add_argument_group("Search")
    group.add_argument(
        "--budget", type=float, default=600.0, help="seconds of trials, over all resumes together"
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
        help="bounds of settings, such as '{lr: [1e-4, 1e-2]}'",
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


@dataclass(frozen=True)
class SettingsTrial(LayerTrial):
    """Trial of one choice of settings.

    Args:
        settings: Values by name, without the layers.
    """

    settings: Mapping[str, int | float] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {"settings": dict(self.settings), **super().to_row()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SettingsTrial":
        """Restore a trial from the plain containers of :meth:`to_row`."""
        outcomes = [CaseScores.from_row(case) for case in row["cases"]]
        seconds = row["seconds_per_edit"]
        return cls(list(row["layers"]), outcomes, seconds, row["failed"], row["settings"])


class Tuning:
    """Search for one study: its space, its record on disk, and its proposals.

    Args:
        study: Inputs.

    Raises:
        ConfigError: If there is nothing to search, or the folder holds another search.
    """

    def __init__(self, study: Study) -> None:
        config = study.config
        self.study = study
        host, self.host_options = innermost_editor(study.editor)
        self.prefix = "--model" + ".editor" * (len(self.host_options) // 2)
        arguments = _arguments(config.model, len(self.host_options) // 2)
        only = config.only
        self.windows: list[list[int]] = []
        if hasattr(host, _LAYERS) and (only is None or _LAYERS in only):
            self.windows = _windows(study, host, arguments.get(_LAYERS))
        given, names = config.space, None if only is None else [n for n in only if n != _LAYERS]
        self.space = search_space(arguments, given, names)
        if len(self.windows) > 1:
            last, start = len(self.windows) - 1, _own_window(study, host, self.windows)
            self.space.append(Dimension(_LAYERS, 0, last, start, integer=True, log=False))
        if not self.space:
            raise ConfigError(
                f"{editor_name(study.editor)} has no setting to search; name some with --only or "
                "--space"
            )
        self.own = _own_layers(study, host)
        #: Whether the first trial has the editor's own settings: not where bounds leave them out.
        self.begins_with_own = all(
            one.start == arguments.get(one.name) for one in self.space if one.name != _LAYERS
        ) and (not self.windows or self.own in self.windows)
        self.search = SettingsSearch(self.space, config.seed)
        bounds = {one.name: one.to_row() for one in self.space}
        identity = study.identity() | {
            "space": bounds, "windows": self.windows, "together": config.together,
        }  # fmt: skip
        study.folder.path.mkdir(parents=True, exist_ok=True)
        self.rows = ResumableRows(study.folder.path / "tune.jsonl", identity)
        self.tried: list[SettingsTrial] = []
        self.spent = 0.0
        for row in self.rows.rows:
            self._take(SettingsTrial.from_row(row["trial"]), row["proposed"], row["seconds"])

    def run(self) -> None:
        """Try settings until the budget or the number of trials is used up."""
        config, evaluation = self.study.config, self.study.evaluation()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        done = self.spent >= config.budget or self._enough()
        with Progress(*columns, console=Console(stderr=True), disable=done) as bar:
            task = bar.add_task("", total=config.budget, completed=int(self.spent))
            while self.spent < config.budget and not self._enough():
                best = max((one.score for one in rate(self.tried, config.seed)), default=0.0)
                text = f"Trial {len(self.tried) + 1}, best so far {best:.3f}"
                bar.update(task, description=text, completed=self.spent)
                began = time.perf_counter()
                proposed = self.search.ask()

                def advance(began: float = began) -> None:
                    bar.update(task, completed=self.spent + time.perf_counter() - began)

                trial = self._try(proposed, evaluation, advance)
                seconds = time.perf_counter() - began
                row = {"proposed": proposed, "seconds": round(seconds, 3), "trial": trial.to_row()}
                self.rows.append([row])
                self._take(trial, proposed, seconds)

    def _enough(self) -> bool:
        most = self.study.config.trials
        return most is not None and len(self.tried) >= most

    def _take(self, trial: SettingsTrial, proposed: Settings, seconds: float) -> None:
        self.tried.append(trial)
        self.spent += seconds
        rated = rate([trial], self.study.config.seed)
        self.search.tell(proposed, rated[0].score if rated else 0.0)

    def _try(
        self, proposed: Settings, evaluation: Evaluation, advance: Callable[[], None]
    ) -> SettingsTrial:
        settings = {name: value for name, value in proposed.items() if name != _LAYERS}
        layers = self.windows[int(proposed[_LAYERS])] if _LAYERS in proposed else self.own
        try:
            editor = self.study.editor_with(*self.options(layers, settings))
            outcomes, seconds = run_trial(
                self.study, editor, evaluation, advance, together=self.study.config.together
            )
        except IMPOSSIBLE as error:
            return SettingsTrial(layers, [], failed=str(error), settings=settings)
        return SettingsTrial(layers, outcomes, seconds, settings=settings)

    def options(self, layers: Sequence[int], settings: Mapping[str, int | float]) -> list[str]:
        """Return settings as options of ``edit``.

        Args:
            layers: Edited layers; none are named where they are not searched.
            settings: Other values by name.
        """
        found = list(self.host_options)
        if self.windows:
            found += [f"{self.prefix}.{_LAYERS}", json.dumps(list(layers))]
        for name, value in settings.items():
            found += [f"{self.prefix}.{name}", repr(value)]
        return found


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
    sweep_plots.check_formats(study.config.figures)
    if study.config.budget <= 0:
        raise ConfigError(f"--budget is in seconds, above 0; got {study.config.budget}")
    tuning = Tuning(study)
    try:
        tuning.run()
    except KeyboardInterrupt:
        line = study.resume_line(_VERB)
        sys.stderr.write(f"Interrupted. Finished trials are kept; go on with\n  {line}\n")
        return 1
    _show(tuning)
    return 0


def _arguments(model: Any, depth: int) -> dict[str, Any]:
    """Return the arguments of the innermost editor as configured, with its defaults."""
    for _ in range(depth):
        model = model.init_args.editor
    return dict(vars(model.init_args)) if "init_args" in model else {}


def _own_layers(study: Study, host: Editor) -> list[int]:
    """Return the layers that the editor edits by itself."""
    given = getattr(host, _LAYERS, None)
    return list(host.default_layers(resolve(study.model).num_blocks) if given is None else given)


def _windows(study: Study, host: Editor, given: Sequence[int] | None) -> list[list[int]]:
    """Return the choices of layers: as many together as the editor edits by itself."""
    blocks = resolve(study.model).num_blocks
    own = _own_layers(study, host)
    width = len(own) if 0 < len(own) < blocks else 1
    if len(own) >= blocks and given is None:
        return []  # every layer at once is what the editor does
    chosen = candidates(blocks, width, study.config.candidates)
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


def _own_window(study: Study, host: Editor, windows: Sequence[Sequence[int]]) -> int:
    own = _own_layers(study, host)
    return windows.index(own) if own in windows else 0


# ------------------------------------------------------------------------------------------ output


def _show(tuning: Tuning) -> None:
    study, console = tuning.study, Console(highlight=False)
    ranked = rate(tuning.tried, study.config.seed)
    failures = [one for one in tuning.tried if one.failed is not None]
    for one in failures[:3]:
        text = f"Impossible: {_settings_text(one)}: {one.failed}"
        console.print(visible(text), soft_wrap=True, markup=False)
    if not ranked:
        raise ConfigError("no settings could be tried; see the reasons above")
    own = None
    if tuning.begins_with_own:
        own = next((one for one in ranked if one.tried is tuning.tried[0]), None)
    title = visible(_title(tuning))
    shown = list(ranked[:8])
    if own is not None and own not in shown:
        shown.append(own)
    console.print(_table(ranked, own, shown, escape(title), tuning))
    for number, tried in enumerate(tuning.tried, 1):
        if any(one.tried is tried for one in shown):
            text = f"Trial {number}: {_settings_text(tried)}"
            console.print(visible(text), soft_wrap=True, markup=False)
    console.print(_advice(ranked, own, tuning), soft_wrap=True)
    out = Path(study.config.out or study.folder.path / f"{type(study.editor).__name__}.yaml")
    if ranked[0].score > 0:
        study.write(out, _yaml(tuning, ranked[0]).encode())
    files = [study.folder.path / "tune.jsonl"]
    if sweep_plots.available():
        files += _plot(tuning, ranked, own, title)
    console.print(visible("Files: " + ", ".join(map(str, files))), soft_wrap=True, markup=False)
    if ranked[0].score > 0:
        line = f"To edit with them: lightning-edit edit --config {out} --data …"
        console.print(visible(line), soft_wrap=True, markup=False)


def _title(tuning: Tuning) -> str:
    study = tuning.study
    model = str(study.config.lm).rstrip("/").rpartition("/")[2]
    how = "all at once" if study.config.together else "each alone"
    mode = "teacher forced" if study.mode == "tf" else "generated"
    return (
        f"{editor_name(study.editor)} on {model}: {len(tuning.tried)} trials of "
        f"{len(study.cases)} facts of {study.split}, {how}, {mode}"
    )


def _settings_text(one: SettingsTrial) -> str:
    parts = [f"layers {label(one.layers)}"] if one.layers else []
    return ", ".join([*parts, *(f"{name} {value:.3g}" for name, value in one.settings.items())])


def _table(
    ranked: Sequence[RankedTrial],
    own: RankedTrial | None,
    shown: Sequence[RankedTrial],
    title: str,
    tuning: Tuning,
) -> Table:
    numbers = {id(one): number for number, one in enumerate(tuning.tried, 1)}
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("trial", justify="right")
    aspects = [aspect for aspect in ASPECTS if aspect in ranked[0].means]
    for aspect in aspects:
        header = f"{aspect}\n{measure_of(aspect, tuning.study.mode)}"
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("harmonic\nmean", justify="right", style="bold", no_wrap=True)
    table.add_column("±", justify="right", style="dim", no_wrap=True)
    table.add_column("s/edit", justify="right", no_wrap=True)
    for one in shown:
        mark = "★" if one is ranked[0] else "own" if one is own else "≈" if one.ties else ""
        table.add_row(
            mark,
            str(numbers[id(one.tried)]),
            *(f"{one.means[aspect]:.3f}" for aspect in aspects),
            f"{one.score:.3f}",
            f"{one.spread:.3f}",
            f"{one.tried.seconds:.2g}",
            style="bold green" if mark == "★" else None,
        )
    return table


def _advice(ranked: Sequence[RankedTrial], own: RankedTrial | None, tuning: Tuning) -> str:
    if ranked[0].score == 0:
        return (
            "With none of them all three shares are above 0, so no settings are written. Look at "
            "other layers, or widen the bounds with --space."
        )
    facts = len(tuning.study.cases)
    text = f"★ best; ± is the standard error of the harmonic mean over {facts} facts. "
    if not tuning.begins_with_own:
        return text + "The editor's own settings lie outside the bounds and were not tried."
    if own is ranked[0]:
        return text + "The editor's own settings are the best that were found."
    if own is None:
        return text + "With its own settings the editor could not edit this model."
    if own.ties:
        return text + "The editor's own settings are as good, within the spread of these facts."
    return text + f"The editor's own settings reach {own.score:.3f}."


def _yaml(tuning: Tuning, best: RankedTrial) -> str:
    """Return the best settings as a configuration for ``edit``, with what they were measured on."""
    study, trial = tuning.study, best.tried
    assert isinstance(trial, SettingsTrial)
    lines = [
        f"# {visible(_title(tuning))}.",
        "# " + ", ".join(f"{aspect} {value:.3f}" for aspect, value in best.means.items())
        + f"; harmonic mean {best.score:.3f} ± {best.spread:.3f}.",
        "# Chosen on these facts: report results on others.",
    ]  # fmt: skip
    arguments: dict[str, Any] = {}
    if tuning.windows:
        arguments[_LAYERS] = list(trial.layers)
    arguments |= trial.settings
    configured = _plain(study.config.model)
    inner = configured
    for _ in range(len(tuning.host_options) // 2):
        inner = inner["init_args"]["editor"]
    inner["init_args"] = inner.get("init_args", {}) | arguments
    text = yaml.safe_dump({"model": configured}, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, text])


def _plain(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config.as_dict(), default=str))
    return plain


def _plot(
    tuning: Tuning, ranked: Sequence[RankedTrial], own: RankedTrial | None, title: str
) -> list[Path]:
    points = [
        (one.means.get("locality", 0.0), _success(one)) for one in ranked
    ]  # locality, success of the edit
    figure = sweep_plots.success_against_locality(
        points, pareto(points), 0, None if own is None else ranked.index(own), title
    )
    study = tuning.study
    return sweep_plots.save(figure, study.folder.path / "tune", study.config.figures)


def _success(one: RankedTrial) -> float:
    found = [one.means[name] for name in ("reliability", "generalization") if name in one.means]
    return sum(found) / len(found) if found else 0.0
