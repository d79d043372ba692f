"""When a generated text counts as an answer."""

import pytest

from lightning_edit.functional.text import answers_match, candidates, first_line, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Hague. ", "hague"),
        ("U.S.", "us"),
        ("São Tomé", "são tomé"),
        ("Ｐａｒｉｓ", "paris"),
        ("Saint-Denis – Nord", "saint denis nord"),
        ("O’Brien's", "obriens"),
        ("C++", "c++"),
        ("A", "a"),
        ("The The", "the the"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    ("generated", "accepted", "right"),
    [
        ("Paris", ["Paris"], True),
        ("paris.", ["Paris"], True),
        ("Paris. It lies on the Seine and", ["Paris"], True),
        ("Paris, France. It", ["Paris"], False),
        ("Paris and Lyon", ["Paris"], False),
        ("Lyon. Paris. It", ["Paris"], False),
        ("U.S. law applies", ["U.S."], True),
        ("the U.S. and", ["US"], True),
        ("U.S.", ["U"], False),
        ("Washington, D.C. It lies", ["Washington D.C."], True),
        ("St. Gallen. It", ["St. Gallen"], True),
        ("“Paris.” he said", ["Paris"], True),
        ("3.14 is", ["3"], False),
        ("東京。日本", ["東京"], True),
        ("Roma", ["Rome", "Roma"], True),
        ("", ["Paris"], False),
    ],
)
def test_answers_match(generated: str, accepted: list[str], right: bool) -> None:
    assert answers_match(generated, accepted) is right


def test_candidates_end_with_the_whole_text() -> None:
    assert candidates("One. Two! Three") == ["One.", "One. Two!", "One. Two! Three"]
    assert candidates("One.") == ["One."]


def test_first_line_skips_leading_blank_lines() -> None:
    assert first_line("\n\n Paris \nLyon") == "Paris"
