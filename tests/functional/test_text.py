"""When a generated text counts as an answer."""

import pytest

from lightning_edit.functional.text import (
    answers_match,
    candidates,
    contains_answer,
    first_line,
    same_answer,
    starts_with_answer,
)


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
        ("दिल्ली। यह", ["दिल्ली"], True),
        ("**Paris.** It", ["Paris"], True),
        ("Roma", ["Rome", "Roma"], True),
        ("", ["Paris"], False),
    ],
)
def test_answers_match(generated: str, accepted: list[str], right: bool) -> None:
    assert answers_match(generated, accepted) is right


# What a real instruct model writes, and where a shorter name is another thing.
_STARTS = [
    ("Rome, Italy. The Eiffel Tower is located in", "Rome", True),
    ("Rome", "Rome", True),
    ("**Rome**", "Rome", True),
    ("**Rome**, Italy", "Rome", True),
    ("“Rome” is", "Rome", True),
    ("'Rome', he said", "Rome", True),
    ("- Rome is", "Rome", True),
    ("• Rome", "Rome", True),
    ("→ Rome", "Rome", True),
    ("the Hague, where", "The Hague", True),
    ("The Hague", "Hague", True),
    ("a lake in Mali", "lake", True),
    ("Rome—the eternal city", "Rome", True),
    ("Rome - the eternal city", "Rome", True),
    ("Rome.It lies", "Rome", True),
    ("Rome (Italy)", "Rome", True),
    ("Rome(Italy)", "Rome", True),
    ("ROME!!", "Rome", True),
    ("Paris' capital", "Paris", True),
    ("U.S. law applies", "US", True),
    ("New York City", "New York", True),
    ("1,000 people", "1000", True),
    ("10:30 in the morning", "10:30", True),
    ("C# is a language", "C#", True),
    ("-5 °C at night", "−5", False),
    ("-5 degrees", "−5", True),
    ("Romeo and Juliet", "Rome", False),
    ("Romes", "Rome", False),
    ("Rome's Colosseum", "Rome", False),
    ("Guinea-Bissau", "Guinea", False),
    ("twenty-one", "twenty", False),
    ("10 people", "1", False),
    ("1.5 litres", "1", False),
    ("1,5 Liter", "1", False),
    ("1/2 of it", "1", False),
    ("1 1/2 cups", "1", False),
    ("1½ cups", "1", False),
    ("10² metres", "10", False),
    ("10–12 people", "10", False),
    ("10:30", "10", False),
    ("50% of them", "50", False),
    ("-5 degrees", "5", False),
    ("C# is a language", "C", False),
    ("C++ is a language", "C", False),
    ("A city in Italy", "A", False),
    ("not Rome", "Rome", False),
    ("It is Rome", "Rome", False),
    ("", "Rome", False),
    ("...", "Rome", False),
    # Scripts without blanks: every character is a word, a run of Katakana is one.
    ("東京は日本の首都", "東京", True),
    ("「東京」です", "東京", True),
    ("东京是日本的首都", "东京", True),
    ("ローマは", "ローマ", True),
    ("ローマン", "ローマ", False),
    ("กรุงเทพเป็นเมืองหลวง", "กรุงเทพ", True),
    ("กำ", "ก", False),
    ("京都", "東京", False),
    ("2024年に", "2024", True),
    # Scripts with blanks: whole words, combining marks included.
    ("दिल्ली भारत की", "दिल्ली", True),
    ("दिल्लीवाला", "दिल्ली", False),
    ("कि", "क", False),
    ("القاهرة، مصر", "القاهرة", True),
    ("서울 특별시", "서울", True),
    ("Москва, Россия", "Москва", True),
    ("Москвич", "Москв", False),
]


@pytest.mark.parametrize(("generated", "answer", "right"), _STARTS)
def test_a_text_starts_with_an_answer(generated: str, answer: str, right: bool) -> None:
    assert starts_with_answer(generated, [answer]) is right


@pytest.mark.parametrize(("generated", "answer", "right"), _STARTS)
def test_the_three_rules_are_ordered(generated: str, answer: str, right: bool) -> None:
    """Whatever is an answer starts with it, and whatever starts with it contains it."""
    exact = answers_match(generated, [answer])
    assert exact <= starts_with_answer(generated, [answer]) <= contains_answer(generated, [answer])


@pytest.mark.parametrize(
    ("generated", "answer", "right"),
    [
        ("It is Rome.", "Rome", True),
        ("a Rome-based firm", "Rome", True),
        ("It is not Romeo", "Rome", False),
        ("in New, York", "New York", True),
        ("York, New", "New York", False),
        ("首都は東京です", "東京", True),
        ("pi is 3.14", "3", False),
        ("Rome", "", False),
    ],
)
def test_a_text_contains_an_answer(generated: str, answer: str, right: bool) -> None:
    assert contains_answer(generated, [answer]) is right


@pytest.mark.parametrize(
    ("first", "second", "accepted", "same"),
    [
        ("Rome. It is old", "Rome, Italy", ["Rome"], True),
        ("Rome", "Paris", ["Rome"], False),
        ("Paris", "Rome", ["Rome"], False),
        # Accepted answers are compared one by one: they may be several right things.
        ("Rome", "Roma", ["Rome", "Roma"], False),
        ("New York City", "New York", ["New York", "New York City"], True),
        # Without a known answer: as many words as the longest accepted answer has.
        ("in Lyon, near", "in Lyon. It", ["Rome Italy"], True),
        ("in Lyon, near", "in Nice, near", ["Rome"], True),
        ("in Lyon, near", "in Nice, near", ["Rome Italy"], False),
        ("京都は", "京都に", ["東京"], True),
        ("京都は", "大阪は", ["東京"], False),
        ("", "", ["Rome"], True),
        ("", "Lyon", ["Rome"], False),
    ],
)
def test_two_texts_give_the_same_answer(
    first: str, second: str, accepted: list[str], same: bool
) -> None:
    assert same_answer(first, second, accepted) is same
    assert same_answer(second, first, accepted) is same


def test_candidates_end_with_the_whole_text() -> None:
    assert candidates("One. Two! Three") == ["One.", "One. Two!", "One. Two! Three"]
    assert candidates("One.") == ["One."]


def test_first_line_skips_leading_blank_lines() -> None:
    assert first_line("\n\n Paris \nLyon") == "Paris"
