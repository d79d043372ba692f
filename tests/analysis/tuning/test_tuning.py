"""A search with its record: what it proposes, ranks, tells and writes."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.analysis.tuning.arguments import arguments_of, with_values
from lightning_edit.analysis.tuning.choices import Choices
from lightning_edit.analysis.tuning.result import TuningResult
from lightning_edit.analysis.tuning.search import Settings
from lightning_edit.analysis.tuning.settings_file import settings_yaml
from lightning_edit.analysis.tuning.trial import SettingsTrial, hopeless
from lightning_edit.analysis.tuning.tuning import Tuning
from lightning_edit.editors import FTM, MEMIT, RECT, LoRAEdit, OneLI
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.study_rows import ResumableRows

ARGUMENTS = {"lr": 0.1, "steps": 20, "layers": [2], "mode": "x"}
WINDOWS = [[1], [2], [3, 4]]


def attempt(layers: list[int], numbers: Settings) -> SettingsTrial:
    """Edits hold in block 1 alone, and not at all with a large learning rate."""
    if float(numbers["lr"]) > 0.5:
        return SettingsTrial(layers, [], failed="too large", settings=numbers)
    held = 1.0 if layers == [1] else 0.25
    values = {"reliability": held, "generalization": held, "locality": 0.5}
    cases = [CaseScores(str(number), values) for number in range(4)]
    return SettingsTrial(layers, cases, 0.1, settings=numbers)


def search(folder: Path, trials: int) -> Tuning:
    choices = Choices.of(ARGUMENTS, WINDOWS, [2])
    tuning = Tuning(choices, 0, ResumableRows(folder / "tune.jsonl", choices.to_row()))
    while not tuning.is_over(1e9, trials):
        tuning.step(attempt)
    return tuning


def shown(result: TuningResult) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(result.table("title", "tf"))
    return console.export_text()


def test_the_best_trial_and_the_editors_own_are_told_apart(tmp_path: Path) -> None:
    tuning = search(tmp_path, 14)
    result = TuningResult.of(tuning)
    assert tuning.tried[0].layers == [2]  # the editor's own settings come first
    assert tuning.tried[0].settings == {"lr": 0.1, "steps": 20}
    assert result.best is not None
    assert result.best.tried.layers == [1]
    assert result.own is not None
    lines = shown(result).splitlines()
    assert [line.split()[1] for line in lines if line.strip().startswith("own")] == ["1"]
    assert sum(line.strip().startswith("★") for line in lines) == 1
    assert result.advice(4).endswith(f"own settings reach {result.own.score:.3f}.")
    failed = [one for one in tuning.tried if one.failed]
    assert len(result.failures()) == min(3, len(failed))
    assert all(line.endswith(": too large") for line in result.failures())
    best = next(line for line in result.settings() if "layers 1," in line)
    assert best.startswith("Trial ")


@pytest.mark.parametrize(
    ("better", "written"), [(1, "own"), (2, "own"), (3, "best"), (8, "best"), (0, "own")]
)
def test_luck_does_not_replace_the_editors_own_settings(
    better: int, written: str, tmp_path: Path
) -> None:
    """One that holds two other facts of ten, or one more, is the best by luck; eight are not."""

    def held(layers: list[int], numbers: Settings) -> SettingsTrial:
        others = {0: {0}, 1: {1, 2}, 2: {0, 1}, 3: {0, 1, 2}, 8: set(range(9))}[better]
        right = others if layers == [1] else {0}
        cases = [
            CaseScores(
                str(number),
                {"reliability": 1.0, "generalization": float(number in right), "locality": 1.0},
            )
            for number in range(10)
        ]
        return SettingsTrial(layers, cases, 0.1, settings=numbers)

    choices = Choices.of(ARGUMENTS, WINDOWS, [2])
    tuning = Tuning(choices, 0, ResumableRows(tmp_path / "tune.jsonl", choices.to_row()))
    while not tuning.is_over(1e9, 14):
        tuning.step(held)
    result = TuningResult.of(tuning)
    assert result.best is not None
    assert result.own is not None
    assert (result.best.tried.layers == [1]) == (better > 0)
    assert result.written is (result.own if written == "own" else result.best)
    said = "the own ones are written" in result.advice(10)
    assert said == (written == "own" and result.best is not result.own)
    lines = [line.split() for line in shown(result).splitlines()]
    (own,) = [line for line in lines if "1" in line[:3]]
    assert own[: own.index("1")] == {
        1: ["own", "≈"], 2: ["own", "≈"], 3: ["own", "≈"], 8: ["own"], 0: ["★"],
    }[better]  # fmt: skip
    assert ("may be luck" in result.advice(10)) == (better == 3)


def test_settings_by_rule_are_tried_first_and_written_as_such(tmp_path: Path) -> None:
    """The editor's own settings are its rules, not numbers in their place."""

    def ruled(layers: list[int], numbers: Settings) -> SettingsTrial:
        held = 1.0 if numbers["lr"] == "auto" else 0.25
        values = {"reliability": held, "generalization": held, "locality": 0.5}
        cases = [CaseScores(str(number), values) for number in range(4)]
        return SettingsTrial(layers, cases, 0.1, settings=numbers)

    choices = Choices.of({"lr": "auto", "steps": 20}, [], [2])
    rows = ResumableRows(tmp_path / "tune.jsonl", choices.to_row())
    tuning = Tuning(choices, 0, rows)
    for _ in range(6):
        tuning.step(ruled)
    assert tuning.tried[0].settings == {"lr": "auto", "steps": 20}
    result = TuningResult.of(
        Tuning(choices, 0, ResumableRows(tmp_path / "tune.jsonl", choices.to_row()))
    )
    assert result.best is not None
    assert result.best is result.own
    assert "Trial 1: layers 2, lr auto, steps 20" in result.settings()
    configured = {"class_path": "FTM", "init_args": {"lr": 0.5, "steps": 5}}
    arguments = arguments_of(configured, [FTM])
    text = settings_yaml(configured, arguments, result.best, "title", layers=None)
    assert yaml.safe_load(text)["model"]["init_args"] == {"lr": "auto", "steps": 20}


def test_a_resumed_search_proposes_what_the_whole_one_did(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = search(tmp_path / "a", 11)
    search(tmp_path / "b", 4)
    again = search(tmp_path / "b", 11)
    assert [one.settings for one in again.tried] == [one.settings for one in whole.tried]
    assert [one.layers for one in again.tried] == [one.layers for one in whole.tried]


def test_bounds_that_leave_out_the_editors_own_settings_are_known() -> None:
    assert Choices.of(ARGUMENTS, WINDOWS, [2]).begins_with_own
    assert not Choices.of(ARGUMENTS, WINDOWS, [5]).begins_with_own
    assert not Choices.of(ARGUMENTS, [], [2], {"lr": [0.2, 0.3]}).begins_with_own
    assert Choices.of(ARGUMENTS, [], [2], only=["layers", "lr"]).layers_of({"lr": 1}) == [2]
    with pytest.raises(ConfigError, match="width cannot be searched"):
        Choices.of(ARGUMENTS, WINDOWS, [2], only=["width"])


def test_the_file_sets_the_innermost_editor_and_nothing_else(tmp_path: Path) -> None:
    best = TuningResult.of(search(tmp_path, 14)).best
    assert best is not None
    inner = {"class_path": "MEMIT", "init_args": {"clamp": 2.0, "lr": 9.0, "steps": 3}}
    inner["init_args"]["layers"] = None  # type: ignore[index]  # a dictionary, as written above
    configured = {"class_path": "RECT", "init_args": {"kept": 0.4, "editor": inner}}
    arguments = arguments_of(configured, [RECT, MEMIT])
    text = settings_yaml(configured, arguments, best, "RECT on\x1b[2J tiny", layers="layers")
    written = yaml.safe_load(text)["model"]
    assert written["init_args"]["kept"] == 0.4
    chosen = written["init_args"]["editor"]["init_args"]
    assert chosen["clamp"] == 2.0
    assert chosen["layers"] == [1]
    assert chosen["lr"] == best.tried.settings["lr"]  # type: ignore[attr-defined]  # a SettingsTrial
    assert inner["init_args"]["lr"] == 9.0  # type: ignore[index]  # what was configured stays
    assert "\x1b" not in text
    assert f"harmonic mean {best.score:.3f}" in text.splitlines()[1]


def test_a_wrappers_settings_are_its_own_and_the_hosts_keep_their_names() -> None:
    host = {"class_path": "LoRAEdit", "init_args": {"alpha": 32, "lr": "auto"}}
    configured = {"class_path": "OneLI", "init_args": {"editor": host, "alpha": "auto"}}
    arguments = arguments_of(configured, [OneLI, LoRAEdit])
    options = {name: one.option for name, one in arguments.items() if name != "editor"}
    assert options == {
        "alpha": "--model.editor.alpha",
        "lr": "--model.editor.lr",
        "OneLI.alpha": "--model.alpha",
    }
    values = {name: one.value for name, one in arguments.items()}
    kinds = {name: one.kind for name, one in arguments.items()}
    space = {one.name: one for one in Choices.of(values, [], [], kinds=kinds).space}
    assert (space["alpha"].start, space["alpha"].integer) == (32, True)
    assert (space["OneLI.alpha"].start, space["OneLI.alpha"].high) == ("auto", 1.0)
    changed = with_values(configured, arguments, {"OneLI.alpha": 0.5, "alpha": 8})["init_args"]
    assert (changed["alpha"], changed["editor"]["init_args"]["alpha"]) == (0.5, 8)


def test_trials_say_what_auto_was_and_keep_it(tmp_path: Path) -> None:
    settings: Settings = {"lr": 0.3, "steps": "auto", "moment_weight": "auto", "clamp": "auto"}
    chosen = {"steps": 2000, "moment_weight": [70.0, 90.0]}
    trial = SettingsTrial([1], [], settings=settings, chosen=chosen)
    words = "layers 1, lr 0.3, steps auto (2000), moment_weight auto (70–90), clamp auto"
    assert trial.words == words
    assert SettingsTrial.from_row(trial.to_row()).words == words
    earlier = {key: value for key, value in trial.to_row().items() if key != "auto"}
    assert SettingsTrial.from_row(earlier).chosen == {}


def test_one_choice_of_layers_is_taken() -> None:
    assert Choices.of(ARGUMENTS, [[1]], [2]).layers_of({"lr": 0.1}) == [1]


def test_a_trial_is_given_up_after_three_facts_that_can_be_written() -> None:
    def scores(*held: float) -> list[CaseScores]:
        return [CaseScores(str(n), {"reliability": float(one)}) for n, one in enumerate(held)]

    own = scores(0, 1, 1, 1, 1)
    assert not hopeless(scores(0, 0, 0), own)  # two of them only
    assert hopeless(scores(0, 0, 0, 0), own)
    assert not hopeless(scores(0, 0, 0, 0.5), own)
    assert not hopeless(scores(0, 0, 0, 0, 0), scores(0, 0, 0, 0, 0))
    assert not hopeless(scores(0, 0, 0, 0, 0), [])


def test_trials_that_are_all_impossible_end_the_search(tmp_path: Path) -> None:
    """They take no time, so the budget would not."""
    tuning = Tuning(Choices.of(ARGUMENTS, [], [2]), 0, ResumableRows(tmp_path / "t.jsonl", {}))
    while not tuning.is_over(1e9, None):
        tuning.step(lambda layers, numbers: SettingsTrial(layers, [], failed="x", settings=numbers))
    assert len(tuning.tried) == 8


def test_a_trial_that_cannot_be_beaten_ends_the_search(tmp_path: Path) -> None:
    tuning = Tuning(Choices.of(ARGUMENTS, [], [2]), 0, ResumableRows(tmp_path / "t.jsonl", {}))
    case = CaseScores("a", {"reliability": 1.0, "generalization": 1.0, "locality": 1.0})
    tuning.step(lambda layers, numbers: SettingsTrial(layers, [case], settings=numbers))
    assert tuning.is_over(1e9, 5)


def test_facts_without_probes_of_other_answers_are_named_and_not_drawn(tmp_path: Path) -> None:
    tuning = Tuning(Choices.of(ARGUMENTS, [], [2]), 0, ResumableRows(tmp_path / "t.jsonl", {}))
    case = CaseScores("a", {"reliability": 1.0, "generalization": 0.5})
    tuning.step(lambda layers, numbers: SettingsTrial(layers, [case], settings=numbers))
    result = TuningResult.of(tuning)
    assert result.points() == []
    assert "no probes of other answers (locality)" in result.advice(1)
    assert "over 1 fact." in result.advice(1)


def test_nothing_that_works_writes_no_settings(tmp_path: Path) -> None:
    rows = ResumableRows(tmp_path / "tune.jsonl", {})
    tuning = Tuning(Choices.of(ARGUMENTS, [], [2]), 0, rows)
    tuning.step(lambda layers, numbers: attempt(layers, {**numbers, "lr": 1.0}))
    result = TuningResult.of(tuning)
    assert (result.best, result.ranked) == (None, ())
    tuning.step(
        lambda layers, numbers: SettingsTrial(
            layers, [CaseScores("a", {"reliability": 0.0, "locality": 1.0})], settings=numbers
        )
    )
    result = TuningResult.of(tuning)
    assert result.best is None
    assert "In no trial was an edit held, so no settings are written" in result.advice(1)
    assert not {"★", "≈"} & set(shown(result))
