"""Effects averaged by the role of a token."""

import pytest

from lightning_edit.analysis.tracing.roles import LAST_SUBJECT, average, roles_of
from lightning_edit.functional.tracing import window

FIRST, MIDDLE, LAST, NEXT, FURTHER, END = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@pytest.mark.parametrize(
    ("subject", "tokens", "expected"),
    [
        (4, 8, [FIRST, MIDDLE, MIDDLE, LAST, NEXT, FURTHER, FURTHER, END]),
        (2, 4, [FIRST, LAST, NEXT, END]),
        (1, 3, [LAST, NEXT, END]),
        (1, 2, [LAST, END]),
        (2, 2, [FIRST, LAST]),
    ],
)
def test_every_token_has_one_role(subject: int, tokens: int, expected: list[str]) -> None:
    assert roles_of(subject, tokens) == expected


def row(subject: int, effects: list[list[float]]) -> dict[str, object]:
    return {"subject_tokens": subject, "effects": {"mlp": effects}}


def test_a_fact_with_many_tokens_of_a_role_does_not_outweigh_one_with_few() -> None:
    long = row(4, [[0.0], [0.2], [0.4], [0.9], [0.1], [0.0]])
    short = row(3, [[0.0], [0.6], [0.5], [0.3], [0.2]])
    found = average([long, short], "mlp")
    assert found.effects[MIDDLE] == pytest.approx([(0.3 + 0.6) / 2])
    assert found.effects[LAST] == pytest.approx([0.7])
    assert found.counts == {FIRST: 2, MIDDLE: 2, LAST: 2, NEXT: 2, END: 2}
    assert found.errors[LAST] == pytest.approx([0.2])  # sqrt(((0.2² + 0.2²) / 1) / 2)
    assert FURTHER not in found.effects


def test_peaks() -> None:
    found = average([row(1, [[0.1, 0.4, 0.2], [0.0, 0.0, 0.8]])], "mlp")
    assert found.peak() == (END, 2)
    assert found.peak(LAST_SUBJECT) == (LAST_SUBJECT, 1)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(0, range(5)), (5, range(10)), (20, range(15, 25)), (47, range(42, 48))],
)
def test_windows_are_those_of_the_authors_code(layer: int, expected: range) -> None:
    assert window(layer, 10, 48) == expected


def test_a_window_of_one_is_the_layer() -> None:
    assert [list(window(layer, 1, 5)) for layer in range(5)] == [[0], [1], [2], [3], [4]]
