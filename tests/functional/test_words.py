"""Normalisation of texts: what is the same, what stays different, in many scripts."""

import unicodedata

import pytest

from lightning_edit.functional.words import normalise, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Hague. ", "hague"),
        ("U.S.", "us"),
        ("Ph.D.", "phd"),
        ("São Tomé", "são tomé"),
        ("Ｐａｒｉｓ", "paris"),
        ("Saint-Denis – Nord", "saint denis nord"),
        ("O’Brien's", "obriens"),
        ("C++", "c++"),
        ("A", "a"),
        ("The The", "the the"),
        ("Vitamin A", "vitamin a"),
        ("a Vitamin A deficiency", "vitamin a deficiency"),
        ("A型", "a型"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    "spellings",
    [
        ("U.S.", "US", "us", "the U.S."),
        ("1,000", "1000", "1'000", "1\u202f000", "1\u00a0000", "１０００", "١٠٠٠"),
        ("12,34,567", "1,234,567", "1234567"),
        ("−5", "-5", "–5"),
        ("½", "1/2", "1⁄2"),
        ("1½", "1 1/2"),
        ("3.14", "٣٫١٤"),
        ("1939–1945", "1939-1945", "1939 – 1945"),
        ("50 %", "50%", "٥٠٪"),
        ("20 °C", "20°C", "20℃"),
        ("10²", "10^2"),
        ("AT&T", "AT & T", "AT and T"),
        ("“Rome”", '"Rome"', "«Rome»", "‹Rome›", "„Rome“", "`Rome`", "**Rome**", "_Rome_"),
        ("Hawaiʻi", "Hawai'i", "Hawaii"),
        ("Straße", "STRASSE"),
        ("İstanbul", "Istanbul", "istanbul"),
        ("São", "Sa\u0303o"),
        ("ﬁnal", "final"),
        ("ｱﾒﾘｶ", "アメリカ"),
        ("レオナルド・ダ・ヴィンチ", "レオナルドダヴィンチ"),
        ("東京、日本", "東京日本", "東京 日本"),
        ("مُدَرِّسَة", "مدرسة", "مـدرسة"),
        ("צה״ל", "צהל"),
        ("שָׁלוֹם", "שלום"),
        ("Guinea-Bissau", "Guinea Bissau", "Guinea‑Bissau"),
        ("co\u00adop", "coop"),
    ],
)
def test_spellings_of_one_thing_are_equal(spellings: tuple[str, ...]) -> None:
    assert len({normalise(text) for text in spellings}) == 1, [normalise(t) for t in spellings]


@pytest.mark.parametrize(
    "things",
    [
        ("5", "-5", "+5", "0.5", "1/5", "5%", "$5", "5°"),
        ("15", "1.5", "1:5", "1/5", "1,5", "1-5", "1'5", "1*5", "1 5"),
        ("10^2", "102", "10"),
        ("1½", "11/2", "1/2"),
        ("1,000", "1.000", "1,00"),
        ("10:30", "1030", "10.30"),
        ("C", "C#", "C++"),
        ("Vitamin A", "Vitamin"),
        ("Hepatitis A", "Hepatitis B"),
        ("AT&T", "ATT"),
        ("São", "Sao"),
        ("año", "ano"),
        ("kır", "kir"),
        ("हिन्दी", "हन्दी"),
        ("कि", "की", "क"),
        ("กา", "ก", "กำ"),
        ("が", "か"),
        ("ローマ", "ロマ"),
        ("أب", "اب"),
        ("й", "и"),
        ("A型", "型"),
    ],
)
def test_different_things_stay_different(things: tuple[str, ...]) -> None:
    assert len({normalise(text) for text in things}) == len(things), [normalise(t) for t in things]


def test_a_hyphen_is_remembered() -> None:
    assert [word.hyphenated for word in words("Guinea-Bissau and B-52 – one")] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_characters_without_blanks_are_words_with_their_marks() -> None:
    assert [word.text for word in words("น้ำใจ")] == ["น้ํ", "า", "ใ", "จ"]
    assert [word.text for word in words("東京タワー2号")] == ["東", "京", "タワー", "2", "号"]


def test_properties() -> None:
    """On drawn texts of many scripts and marks: idempotent, never empty, blind to encoding."""
    hypothesis = pytest.importorskip("hypothesis", reason="property tests need `hypothesis`")
    strategies = hypothesis.strategies
    letters = (
        "aAnN the12340.,:/'’\"-–—−#+%°&@*_^½²¹⁻$€()[]!?…·・״`ßİıIée\u0301\u0308हि्कกาำ東ア京ーはRome"
        "مَـ٣٫\u00a0\u202f\u200d\u200b\u00ad\ufe0f한ﬁ①Ⅷ\u2010゠~|\u0345"
    )
    texts = strategies.one_of(
        strategies.text(alphabet=letters, max_size=14), strategies.text(max_size=10)
    )

    @hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @hypothesis.given(texts)
    def check(text: str) -> None:
        short = normalise(text)
        assert normalise(short) == short
        assert [word.text for word in words(short)] == [word.text for word in words(text)]
        if any(unicodedata.category(letter)[0] in "LN" for letter in text):
            assert short
        assert normalise(unicodedata.normalize("NFD", text)) == normalise(
            unicodedata.normalize("NFC", text)
        )
        assert normalise(f"  {text}\t\n") == short

    check()


def test_numbers_are_told_apart() -> None:
    """Two numbers written in one way are equal only if they are one number."""
    hypothesis = pytest.importorskip("hypothesis", reason="property tests need `hypothesis`")
    strategies = hypothesis.strategies
    numbers = strategies.decimals(-10000, 10000, places=2, allow_nan=False)

    @hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @hypothesis.given(numbers, numbers)
    def check(first: object, second: object) -> None:
        assert (normalise(f"{first:,}") == normalise(f"{second:,}")) == (f"{first}" == f"{second}")
        assert normalise(f"{first:,}") == normalise(f"{first}")

    check()
