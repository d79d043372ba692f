"""A subject is a word, and of several places the last one before the answer counts."""

import pytest

from lightning_edit.types import EditRequest
from lightning_edit.types.subjects import subject_places


@pytest.mark.parametrize(
    ("prompt", "subject", "places"),
    [
        ("Rome and Romeo: Rome is", "Rome", [0, 16]),
        ("The Romeo of Rome is", "Rome", [13]),
        ("Iran's and Ira's", "Ira", [11]),
        ("C and C++: C is", "C", [0, 6, 11]),
        ("東京都の知事は", "東京", [0]),
        ("The X-Files star", "X-Files", [4]),
        ("снег и снегопад", "снег", [0]),
        ("cafe\u0301 cafe", "cafe", [6]),
        ("Parisian life", "Paris", [0]),
        ("nothing here", "Paris", []),
    ],
)
def test_places_of_a_subject_as_a_word(prompt: str, subject: str, places: list[int]) -> None:
    assert subject_places(prompt, subject) == places


def test_a_request_takes_the_last_place_unless_told() -> None:
    prompt = "Unlike Romeo, Rome is. Rome lies in"
    request = EditRequest("a", prompt, "Italy", "Rome")
    assert request.subject_start == prompt.rindex("Rome")
    told = EditRequest("a", prompt, "Italy", "Rome", subject_start=14)
    assert told.subject_end == 18
