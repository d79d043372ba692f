"""Which layers are tried, and which differences are called differences."""

import pytest

from lightning_edit.analysis.sweep.layers import LayerTrial, candidates, rate
from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.exceptions import ConfigError


def tried(layer: int, successes: list[float], kept: float = 1.0) -> LayerTrial:
    outcomes = [
        CaseScores(
            f"case-{number}", {"reliability": value, "generalization": 1.0, "locality": kept}
        )
        for number, value in enumerate(successes)
    ]
    return LayerTrial([layer], outcomes)


@pytest.mark.parametrize(
    ("width", "given", "expected"),
    [
        (1, None, [[0], [1], [2], [3]]),
        (3, None, [[0, 1, 2], [1, 2, 3]]),
        (2, [1, [3, 0]], [[1, 2], [0, 3]]),
        (1, [2, 2], [[2]]),
    ],
)
def test_candidates(width: int, given: list[int | list[int]] | None, expected: object) -> None:
    assert candidates(4, width, given) == expected


@pytest.mark.parametrize(("width", "given"), [(2, [3]), (1, [4]), (1, [-1]), (1, [[]]), (5, None)])
def test_layers_that_the_model_lacks_are_refused(
    width: int, given: list[int | list[int]] | None
) -> None:
    with pytest.raises(ConfigError, match=r"0 to 3|1 to 4"):
        candidates(4, width, given)


def test_a_clear_difference_is_one_and_a_single_fact_is_not() -> None:
    good, close, bad = [1.0] * 18 + [0.0] * 2, [1.0] * 17 + [0.0] * 3, [1.0] * 4 + [0.0] * 16
    rated = rate([tried(0, bad), tried(1, good), tried(2, close)])
    assert [one.tried.layers for one in rated] == [[1], [2], [0]]
    assert [one.ties for one in rated] == [True, True, False]
    assert rated[0].means["reliability"] == pytest.approx(0.9)
    assert rated[0].score == pytest.approx(3 / (1 / 0.9 + 2))


@pytest.mark.parametrize("facts", [2, 10, 20, 50])
def test_one_fact_is_never_a_standard_error_and_three_are_not_two(facts: int) -> None:
    # The bootstrap alone takes one fact in ten for a standard error, and all of two for certain.
    def rest(wrong: int) -> list[float]:
        return [0.0] * wrong + [1.0] * (facts - wrong)

    one = rate([tried(0, rest(0)), tried(1, rest(1))])[1]
    assert one.near
    assert one.ties
    few = rate([tried(0, rest(0)), tried(1, rest(min(3, facts)))])[1]
    assert not few.near
    assert few.ties


def test_a_difference_that_every_fact_shows_is_one_however_different_the_facts_are() -> None:
    # Each fact is a little better at layer 1; unpaired spreads would hide that.
    easy = [0.1, 0.9, 0.2, 1.0, 0.3, 0.8, 0.15, 0.95, 0.4, 0.6]
    rated = rate([tried(0, [value - 0.05 for value in easy]), tried(1, easy)])
    assert rated[0].spread > 0.05
    assert not rated[1].ties


def test_an_aspect_that_nobody_asks_about_is_left_out() -> None:
    outcomes = [CaseScores("a", {"reliability": 1.0, "locality": 0.5})]
    (rated,) = rate([LayerTrial([0], outcomes)])
    assert set(rated.means) == {"reliability", "locality"}
    assert rated.score == pytest.approx(2 / 3)


def test_a_layer_without_edits_is_not_rated() -> None:
    assert rate([LayerTrial([0], [], failed="singular")]) == []


def test_rows_come_back() -> None:
    one = tried(3, [1.0, 0.5])
    assert LayerTrial.from_row(one.to_row()) == one


def test_trials_without_any_generalization_are_compared_by_the_rest() -> None:
    def trial(layer: int, held: float, near: float) -> LayerTrial:
        values = {"reliability": held, "generalization": 0.0, "locality": near}
        return LayerTrial([layer], [CaseScores(f"case-{n}", values) for n in range(3)])

    ranked = rate([trial(0, 1.0, 0.5), trial(1, 1.0, 1.0), trial(2, 0.5, 1.0), trial(3, 0.0, 1.0)])
    assert [one.tried.layers for one in ranked] == [[1], [0], [2], [3]]
    assert ranked[0].score == pytest.approx(3 / (1 + 10 + 1))
    assert ranked[1].score == pytest.approx(ranked[2].score)
    assert ranked[3].score == 0.0  # without the edit itself there is nothing


def test_lost_locality_is_worse_than_no_generalization() -> None:
    def score(held: float, reworded: float, near: float) -> float:
        values = {"reliability": held, "generalization": reworded, "locality": near}
        return rate([LayerTrial([0], [CaseScores("a", values)])])[0].score

    assert score(0.9, 0.0, 0.7) > score(0.5, 0.4, 0.1) > score(0.8, 0.8, 0.0) > 0
    assert score(0.9, 0.3, 0.4) > score(0.9, 0.0, 0.9)
