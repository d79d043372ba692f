"""Search over settings: ranges around an editor's values, proposals that a resume repeats."""

import math

import pytest

from lightning_edit.analysis.tuning.search import SettingsSearch, pareto
from lightning_edit.analysis.tuning.space import AUTO, Dimension, search_space
from lightning_edit.exceptions import ConfigError

SPACE = [
    Dimension("lr", 1e-4, 1e-1, 1e-2),
    Dimension("steps", 5, 40, 20, integer=True),
    Dimension("layers", 0, 3, 0, integer=True, log=False),
]


def quality(settings: dict[str, int | float]) -> float:
    """A score with one peak: lr 3e-3, 30 steps, the layer in place 2."""
    miss = abs(math.log10(settings["lr"] / 3e-3)) / 2 + abs(settings["steps"] - 30) / 50
    return max(0.0, 1 - miss - 0.2 * abs(settings["layers"] - 2))


def searched(rounds: int, search: SettingsSearch | None = None) -> list[dict[str, int | float]]:
    search = search or SettingsSearch(SPACE, 0)
    tried = []
    for _ in range(rounds):
        settings = search.ask()
        search.tell(settings, quality(settings))
        tried.append(settings)
    return tried


def test_the_first_proposal_is_the_editors_own_and_later_ones_are_better() -> None:
    tried = searched(40)
    assert tried[0] == {"lr": 1e-2, "steps": 20, "layers": 0}
    scores = [quality(one) for one in tried]
    assert max(scores) > scores[0] + 0.3
    assert sum(scores[-15:]) > sum(scores[1:16])
    assert all(1e-4 <= one["lr"] <= 1e-1 for one in tried)
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


def test_auto_settings_are_searched_in_the_range_of_published_values() -> None:
    arguments = {"lr": "auto", "clamp": "auto", "statistics": "auto", "steps": 20}
    space = {one.name: one for one in search_space(arguments)}
    assert sorted(space) == ["clamp", "lr", "steps"]
    for name in ("lr", "clamp"):
        start, low, high = AUTO[name]
        assert (space[name].start, space[name].low, space[name].high) == (start, low, high)
        assert space[name].log
        assert not space[name].integer
    (given,) = search_space(arguments, {"lr": [1e-3, 2e-3]}, only=["lr"])
    assert (given.low, given.high, given.start) == (1e-3, 2e-3, 1e-3)


@pytest.mark.parametrize(
    ("arguments", "given", "only", "message"),
    [
        ({"lr": 1.0}, None, ["width"], "the editor's numbers are lr"),
        ({"lr": 0.0}, None, ["lr"], "give bounds"),
        ({"lr": 1.0}, {"lr": [1.0]}, None, "smallest and its largest"),
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
