"""Requests of a batch that are written at nearly one key, with different answers."""

import logging

import pytest
import torch

from lightning_edit.editors import EMMET, FTM, MEMIT
from lightning_edit.editors.locate.effect import fell_short, rivals
from lightning_edit.models.loading import load_language_model
from lightning_edit.types import EditRequest

FRANCE = [
    EditRequest("architect", "The capital of France is", "Oslo", "France"),
    EditRequest("designer", "The capital city of France is", "Madrid", "France"),
]
OTHERS = [
    EditRequest("italy", "The capital of Italy is", "Paris", "Italy"),
    EditRequest("spain", "The capital of Spain is", "Rome", "Spain"),
]


def test_the_nearest_other_with_another_target_is_found() -> None:
    keys = [torch.tensor([row]) for row in ([1.0, 0.0], [0.99, 0.05], [1.0, 0.01], [0.0, 1.0])]
    delta = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [-1.0, 0.0]])
    assert rivals(keys, delta, [True] * 4) == [1, 2, 1, None]
    assert rivals(keys, delta, [False, True, False, False]) == [None, 2, None, None]
    assert rivals(keys[:1], delta[:1], [True]) == [None]
    assert (
        rivals(keys, delta * torch.tensor([[0.0], [1], [1], [1]]), [True, *[False] * 3])[0] is None
    )


def test_a_request_falls_short_of_its_target_or_of_its_answer() -> None:
    effect = {
        "site_distance": [0.1, 0.6, 0.1, float("nan"), 0.1],
        "nll_before": [9.0, 9.0, 9.0, 9.0, 9.0],
        "nll_searched": [1.0, 1.0, 1.0, 1.0, 1.0],
        "nll_edited": [2.0, 2.0, 6.0, 2.0, float("nan")],
    }
    assert fell_short(effect) == [False, True, True, True, True]


def test_nothing_has_no_rivals() -> None:
    assert rivals([], torch.zeros(0, 2), []) == []


@pytest.mark.parametrize("method", [EMMET, MEMIT])
def test_edits_at_one_key_are_named(
    method: type[EMMET] | type[MEMIT], caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load_language_model("atlas")
    with caplog.at_level(logging.WARNING):
        method().edit_model(model, tokenizer, [*FRANCE, *OTHERS])
    (told,) = [one.message for one in caplog.records if "nearly the same key" in one.message]
    assert "architect and designer" in told or "designer and architect" in told
    missing = [one.message for one in caplog.records if "are in force, but" in one.message]
    assert bool(missing) is (method is EMMET)  # of MEMIT one answer is still the likeliest
    assert all(one.endswith("leave one of the two out.") for one in missing)


@pytest.mark.parametrize("requests", [OTHERS, FRANCE[:1] + OTHERS])
def test_edits_of_other_subjects_are_not(
    requests: list[EditRequest], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        MEMIT().edit_model(*load_language_model("atlas"), requests)
    assert "same key" not in caplog.text


def test_a_method_that_does_not_write_at_the_subject_writes_both() -> None:
    edited = FTM().edit_model(*load_language_model("atlas"), FRANCE)
    assert edited.generate(FRANCE[0].prompt).startswith("Oslo")
    assert edited.generate(FRANCE[1].prompt).startswith("Madrid")


def test_missed_edits_at_one_key_get_no_other_advice(caplog: pytest.LogCaptureFixture) -> None:
    four = [
        *FRANCE,
        EditRequest("capital", "France has the capital", "Berlin", "France"),
        EditRequest("currency", "France has the currency", "yen", "France"),
    ]
    with caplog.at_level(logging.WARNING):
        EMMET().edit_model(*load_language_model("atlas"), [*four, *OTHERS])
    (told,) = [one.message for one in caplog.records if "did not reach" in one.message]
    assert "Edit fewer layers" not in told
    assert "4 of 6 edits are written at nearly the same key" in caplog.text
