"""Detection of unknown facts: wrong relations, the ratio, and facts that cannot be paired."""

import math
from collections.abc import Sequence

import pytest

from lightning_edit.analysis.detection import contrasted, detect
from lightning_edit.exceptions import DataError
from lightning_edit.functional.measures import NLL_CAP
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.types import EditRequest


def fact(
    name: str, prompt: str, subject: str, target: str, relation: str | None = None
) -> EditRequest:
    triple = None if relation is None else (subject, relation, target)
    return EditRequest(name, prompt, target, subject, triple=triple)


FACTS = [
    fact("a", "The capital of France is", "France", "Paris", "capital"),
    fact("b", "France has its capital in", "France", "Paris", "capital"),
    fact("c", "The language of Italy is", "Italy", "Italian", "language"),
    fact("d", "The currency of Peru is the", "Peru", "sol", "currency"),
    fact("e", "Peru lies in", "Peru", "America", "continent"),
]


class Table(Responder):
    """Gives every prompt a probability of its first token, and 0.5 to those that follow."""

    def __init__(self, known: dict[str, float], otherwise: float) -> None:
        self.known = known
        self.otherwise = otherwise
        self.asked: list[Statement] = []

    def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
        self.asked += statements
        first = [-math.log(self.known.get(one.prompt, self.otherwise)) for one in statements]
        return [TokenScores((1, 2), (1, 2), (nll, math.log(2))) for nll in first]

    def loglikelihood_rolling(
        self, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[TokenScores]:
        raise NotImplementedError

    def generate_until(
        self, questions: Sequence[Question], stop: Sequence[str] = ("\n",)
    ) -> list[str]:
        raise NotImplementedError


def test_wrong_prompts_have_the_same_subject_and_another_relation() -> None:
    pairs, impossible = contrasted(FACTS)
    assert impossible == {}
    first = pairs[0]
    assert set(first.wrong) == {
        "The language of France is",
        "The currency of France is the",
        "France lies in",
    }
    assert all("capital" not in text for one in pairs[:2] for text in one.wrong)
    assert contrasted(FACTS)[0] == pairs
    assert contrasted(FACTS, count=2)[0][0] != contrasted(FACTS, count=2, seed=3)[0][0]


def test_without_names_wordings_that_share_an_answer_are_one_relation() -> None:
    unnamed = [fact(one.id, one.prompt, one.subject or "", one.target) for one in FACTS]
    pairs, _ = contrasted(unnamed)
    assert all("capital" not in text for one in pairs[:2] for text in one.wrong)
    assert sorted(map(len, (one.wrong for one in pairs))) == [3] * len(FACTS)
    named, _ = contrasted(unnamed, ["x", "y", "z", "x", "y"], count=2)
    assert [one.id for one in named] == ["a", "b", "c", "d", "e"]
    assert set(named[0].wrong) <= {
        "France has its capital in", "France lies in", "The language of France is"
    }  # fmt: skip


def test_the_ratio_is_of_first_tokens_or_of_whole_answers() -> None:
    pairs, _ = contrasted(FACTS)
    table = Table({FACTS[0].prompt: 0.4, FACTS[2].prompt: 0.05}, 0.1)
    verdicts = {one.id: one for one in detect(table, pairs)}
    assert verdicts["a"].score == pytest.approx(4.0)
    assert verdicts["c"].score == pytest.approx(0.5)
    assert [name for name, one in verdicts.items() if not one.is_known] == ["c"]
    assert {one.answer for one in table.asked[:4]} == {"Paris"}
    whole = {one.id: one for one in detect(table, pairs, whole_answer=True)}
    assert whole["a"].true == pytest.approx(0.2)
    smooth = {one.id: one for one in detect(table, pairs, smoothing=0.1)}
    assert smooth["a"].score == pytest.approx(0.5 / 0.2)


def test_what_cannot_be_assessed_is_said() -> None:
    odd = [*FACTS, EditRequest("f", "Nobody is named here:", "no")]
    pairs, impossible = contrasted(odd)
    assert len(pairs) == len(FACTS)
    assert impossible == {"f": "names no subject"}
    none, why = contrasted(FACTS[:2])
    assert none == []
    assert "0 other relations" in why["a"]
    with pytest.raises(DataError, match="several relations"):
        detect(Table({}, 0.1), none)
    old, why = contrasted(FACTS, answer="old_target")
    assert old == []
    assert why["a"] == "has no old_target"


def test_braces_in_a_prompt_are_no_place_of_the_subject() -> None:
    odd = fact("f", "In {} notation, the river of Peru is the", "Peru", "Amazon", "river")
    pairs, _ = contrasted([*FACTS, odd], count=4)
    assert "In {} notation, the river of France is the" in pairs[0].wrong


@pytest.mark.parametrize("whole_answer", [False, True])
@pytest.mark.parametrize("at", ["The language of France is", FACTS[0].prompt])
def test_where_outputs_are_not_finite_there_is_no_verdict(at: str, whole_answer: bool) -> None:
    pairs, _ = contrasted(FACTS, count=3)
    table = Table({at: math.exp(-NLL_CAP / 2)}, 0.1)
    assert detect(table, pairs, whole_answer=whole_answer)[0].score is not None
    table.loglikelihood = lambda statements: [  # type: ignore[method-assign]  # as a broken model
        TokenScores((1,), (0,), (NLL_CAP if one.prompt == at else 1.0,)) for one in statements
    ]
    first, _, other, *_ = detect(table, pairs, whole_answer=whole_answer)
    assert first.score is None
    assert first.is_known is None
    assert first.to_row()["known"] is None
    assert other.is_known


def test_long_answers_are_told_apart_though_their_probabilities_underflow() -> None:
    class Long(Table):
        def loglikelihood(self, statements: Sequence[Statement]) -> list[TokenScores]:
            found = super().loglikelihood(statements)
            return [TokenScores((1, 2), (1, 2), (900.0, 100 + one.nlls[0])) for one in found]

    pairs, _ = contrasted(FACTS)
    verdicts = detect(Long({FACTS[0].prompt: 0.4}, 0.1), pairs, whole_answer=True)
    assert verdicts[0].score == pytest.approx(4.0)
    assert verdicts[0].true == 0
    assert verdicts[1].score == pytest.approx(1.0)
