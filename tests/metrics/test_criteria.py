"""Scores of tests of several questions on planted outcomes; the reference is in ``cases.py``."""

import random
from collections.abc import Sequence

import pytest

from lightning_edit.evaluation.outcomes import ProbeScore
from lightning_edit.metrics import summarise
from lightning_edit.types import Group
from tests.metrics.grouped import outcome, random_case


def multi_hop(case: str, right: Sequence[bool], hops: Sequence[bool], took: Sequence[bool]) -> list:
    names = tuple(f"hop {number}" for number in range(len(hops)))
    test = Group("multi_hop", "multi_hop", "any", names)
    return [
        *(outcome(case, "rewrite", ok, False, edit=f"{case}-{n}") for n, ok in enumerate(took)),
        *(outcome(case, "multi_hop", ok, False, test) for ok in right),
        *(
            outcome(case, "premise", True, known, Group(name))
            for name, known in zip(names, hops, strict=True)
        ),
    ]


def test_one_of_three_questions_passes_a_case_and_unknown_hops_are_told_apart() -> None:
    scores = [
        *multi_hop("a", [False, True, False], [True, True], [True]),
        *multi_hop("b", [False, False, False], [True], [True, True]),
        *multi_hop("c", [True, True, True], [True, False], [True]),
        *multi_hop("d", [True, False, False], [], [True, False]),
    ]
    values = summarise(scores)
    group = "portability.multi_hop"
    for mode in ("tf", "gen"):
        assert values[f"{group}/passed@{mode}"] == 3 / 4
        assert values[f"{group}/known@{mode}"] == 3 / 4
        assert values[f"{group}/passed_known@{mode}"] == 2 / 3  # without c
        assert values[f"{group}/passed_edited@{mode}"] == 1 / 2  # without c and d
    assert values[f"{group}/tests"] == 4
    assert values[f"{group}/em@tf"] == pytest.approx((1 / 3 + 0 + 1 + 1 / 3) / 4)


def test_a_premise_is_asked_of_the_pristine_model_not_of_the_edited_one() -> None:
    test = Group("t", "compositionality_i", "any", ("p",))
    scores = [outcome("a", "one_hop", True, False, test)]
    scores += [outcome("a", "premise", True, False, Group("p"))]
    assert summarise(scores)["portability.compositionality_i/known@tf"] == 0
    scores[1] = outcome("a", "premise", False, True, Group("p"))
    assert summarise(scores)["portability.compositionality_i/known@tf"] == 1


def test_all_means_all() -> None:
    test = Group("t", "logical_generalization", "all")
    half = [outcome("a", "reversed_relation", right, False, test) for right in (True, False)]
    assert summarise(half)["portability.logical_generalization/passed@tf"] == 0
    assert summarise(half[:1])["portability.logical_generalization/passed@tf"] == 1


def test_rows_keep_what_the_scores_need() -> None:
    scores = random_case(random.Random(5), "a")
    assert [ProbeScore.from_row(score.to_row()) for score in scores] == scores
