"""Search over settings: ranges around an editor's values, proposals that a resume repeats."""

import math
from collections.abc import Callable

import pytest

from lightning_edit.analysis.tuning.search import SettingsSearch, pareto
from lightning_edit.analysis.tuning.space import AUTO_BOUNDS, Dimension, Setting, search_space
from lightning_edit.cli.doctor_auto import auto_settings
from lightning_edit.cli.doctor_findings import final_editors
from lightning_edit.editors import FTM, MEMIT, RAG
from lightning_edit.exceptions import ConfigError

SPACE = [
    Dimension("lr", 1e-4, 1e-1, 1e-2),
    Dimension("steps", 5, 40, 20, integer=True),
    Dimension("layers", 0, 3, 0, integer=True, log=False),
]


def number(value: Setting) -> float:
    assert isinstance(value, int | float)
    return value


def quality(settings: dict[str, Setting]) -> float:
    """A score with one peak: lr 3e-3, 30 steps, the layer in place 2."""
    lr, steps, layers = (number(settings[name]) for name in ("lr", "steps", "layers"))
    miss = abs(math.log10(lr / 3e-3)) / 2 + abs(steps - 30) / 50
    return max(0.0, 1 - miss - 0.2 * abs(layers - 2))


def searched(
    rounds: int,
    search: SettingsSearch | None = None,
    score: Callable[[dict[str, Setting]], float] = quality,
) -> list[dict[str, Setting]]:
    search = search or SettingsSearch(SPACE, 0)
    tried = []
    for _ in range(rounds):
        settings = search.ask()
        search.tell(settings, score(settings))
        tried.append(settings)
    return tried


def test_the_first_proposal_is_the_editors_own_and_later_ones_are_better() -> None:
    tried = searched(40)
    assert tried[0] == {"lr": 1e-2, "steps": 20, "layers": 0}
    scores = [quality(one) for one in tried]
    assert max(scores) > scores[0] + 0.3
    assert sum(scores[-15:]) > sum(scores[1:16])
    assert all(1e-4 <= number(one["lr"]) <= 1e-1 for one in tried)
    assert {one["layers"] for one in tried} <= {0, 1, 2, 3}


def test_a_search_that_is_told_its_record_goes_on_alike() -> None:
    whole = searched(14)
    again = SettingsSearch(SPACE, 0)
    for settings in whole[:9]:
        again.tell(settings, quality(settings))
    assert searched(5, again) == whole[9:]
    assert searched(14, SettingsSearch(SPACE, 1))[1:] != whole[1:]


def test_ranges_lie_around_the_editors_values() -> None:
    arguments = {"lr": 0.5, "steps": 20, "layers": [3], "clamp": 0.75, "seed": 0, "kept": 0.8}
    space = {one.name: one for one in search_space(arguments)}
    assert list(space) == ["lr", "steps", "clamp", "kept"]
    assert (space["lr"].low, space["lr"].high, space["lr"].start) == (0.05, 5.0, 0.5)
    assert (space["steps"].low, space["steps"].high, space["steps"].integer) == (5, 40, True)
    assert space["kept"].high == 1.0
    (only,) = search_space(arguments, only=["clamp"])
    assert only.name == "clamp"
    (given,) = search_space({"moment_weight": None}, {"moment_weight": [10, 1000]})
    assert (given.low, given.high, given.start) == (10.0, 1000.0, 10.0)


RULED = [Dimension("clamp", 0.2, 8.0, "auto"), Dimension("steps", 5, 40, 20, integer=True)]


@pytest.mark.parametrize("rule", [0.9, 0.1])
def test_a_rule_is_the_first_choice_and_one_of_the_later_ones(rule: float) -> None:
    """It is kept where it is the best, and left where a number is better."""

    def score(settings: dict[str, Setting]) -> float:
        clamp = settings["clamp"]
        return rule if clamp == "auto" else 0.5 - abs(number(clamp) - 4) / 10

    whole = searched(40, SettingsSearch(RULED, 0), score)
    assert whole[0] == {"clamp": "auto", "steps": 20}
    numbers = [one["clamp"] for one in whole if one["clamp"] != "auto"]
    assert 4 < len(numbers) < 36
    assert all(0.2 <= number(value) <= 8 for value in numbers)
    late = sum(one["clamp"] == "auto" for one in whole[-32:])
    assert late > 18 if rule > 0.5 else late < 13
    again = SettingsSearch(RULED, 0)
    for settings in whole[:9]:
        again.tell(settings, score(settings))
    assert searched(31, again, score) == whole[9:]


def test_auto_settings_begin_with_the_rule_and_are_searched_around_published_values() -> None:
    arguments = {"lr": "auto", "clamp": "auto", "statistics": "auto", "steps": 20}
    space = {one.name: one for one in search_space(arguments)}
    assert sorted(space) == ["clamp", "lr", "steps"]
    for name in ("lr", "clamp"):
        low, high = AUTO_BOUNDS[name]
        assert (space[name].start, space[name].low, space[name].high) == ("auto", low, high)
        assert space[name].log
        assert not space[name].integer
    (lr,) = search_space(arguments, only=["lr"], kinds={"lr": MEMIT})
    assert (lr.low, lr.high) == AUTO_BOUNDS["LocateThenEdit.lr"]
    (given,) = search_space(arguments, {"lr": [1e-3, 2e-3]}, only=["lr"])
    assert (given.low, given.high, given.start) == (1e-3, 2e-3, "auto")


def test_every_setting_by_rule_can_be_searched_and_counts_stay_whole() -> None:
    for editor in final_editors():
        named = dict.fromkeys(auto_settings(editor), "auto")
        space = search_space(named, only=list(named), kinds=dict.fromkeys(named, editor))
        assert [one.name for one in space] == list(named)
        assert all(one.may_be_auto and one.low < one.high for one in space)
        assert all(one.integer == (one.name == "steps") for one in space)
    (steps,) = search_space({"steps": "auto"}, {"steps": [10, 50]})
    assert (steps.low, steps.high, steps.integer) == (10, 50, True)


def test_a_retriever_is_searched_by_its_threshold() -> None:
    (found,) = search_space({"k": 4, "threshold": "auto"}, kinds={"threshold": RAG})
    assert (found.name, found.start) == ("threshold", "auto")
    assert (
        search_space({"threshold": "auto"}, kinds={"threshold": FTM}) == []
    )  # beside lr and steps


def test_the_second_proposal_of_the_default_seed_is_no_end_of_a_range() -> None:
    search = SettingsSearch([Dimension("lr", 1e-5, 1e-1, 1e-2), *SPACE[1:]], 0)
    for _ in range(3):
        settings = search.ask()
        search.tell(settings, 0.0)
        assert 1.1e-5 < number(settings["lr"]) < 0.9e-1


@pytest.mark.parametrize(
    ("arguments", "given", "only", "message"),
    [
        ({"lr": 1.0}, None, ["width"], "the editor's numbers are lr"),
        ({"lr": 0.0}, None, ["lr"], "give bounds"),
        ({"lr": 1.0}, {"lr": [1.0]}, None, "smallest and its largest"),
        ({"lr": 1.0}, {"rl": [1.0, 2.0]}, None, "rl cannot be searched"),
        ({}, None, ["width"], "numbers are none"),
        ({"lr": 1.0}, {"lr": [2.0, 1.0]}, None, "smallest and its largest"),
    ],
)
def test_what_cannot_be_searched_is_named(
    arguments: dict[str, float],
    given: dict[str, list[float]] | None,
    only: list[str] | None,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        search_space(arguments, given, only)


def test_pareto_points_are_those_that_nothing_beats() -> None:
    points = [(0.9, 0.5), (0.5, 0.9), (0.5, 0.5), (0.9, 0.4), (0.7, 0.7)]
    assert pareto(points) == [0, 1, 4]
    assert pareto([(0.5, 0.5), (0.5, 0.5)]) == [0, 1]
