"""Probes derived from an edit: what they ask, and when there are none."""

from pathlib import Path

import pytest

from lightning_edit.callbacks.overfitting import questions_of
from lightning_edit.datamodules import AtlasDataModule, JSONLDataModule, QAEditDataModule
from lightning_edit.datamodules.fact_checks import (
    fact_check_probes,
    negated_prompt,
    open_question_probes,
    with_derived_probes,
)
from lightning_edit.evaluation.outcomes import AnswerScore, ProbeScore, probes_of
from lightning_edit.exceptions import DataError
from lightning_edit.metrics import summarise
from lightning_edit.types import EditRequest
from tests.datamodules import records

EDIT = EditRequest("e", "The capital of France is", "Rome", "France", "Paris")
QUESTION = EditRequest("q", "Who wrote Emma?", "Ann.", "Emma", "Jane Austen")


def checks(request: EditRequest) -> list[tuple[str, str, str]]:
    return [
        (probe.kind, probe.prompt.split('"')[1], probe.answers[0])
        for probe in fact_check_probes(request)
    ]


def test_a_statement_is_checked_and_denied() -> None:
    assert checks(EDIT) == [
        ("fact_check", "The capital of France is Rome.", "Yes"),
        ("fact_check", "The capital of France is Paris.", "No"),
        ("negation", "The capital of France is not Rome.", "No"),
        ("negation", "The capital of France is not Paris.", "Yes"),
    ]


def test_a_question_is_checked_by_its_answer() -> None:
    assert checks(QUESTION) == [
        ("fact_check", "The answer to 'Who wrote Emma?' is Ann.", "Yes"),
        ("fact_check", "The answer to 'Who wrote Emma?' is Jane Austen.", "No"),
        ("negation", "The answer to 'Who wrote Emma?' is not Ann.", "No"),
        ("negation", "The answer to 'Who wrote Emma?' is not Jane Austen.", "Yes"),
    ]


def test_a_prompt_that_takes_no_not_is_negated_as_a_sentence() -> None:
    request = EditRequest("e", "Emma was written by", "Ann", old_target="Jane")
    assert negated_prompt(request.prompt) is None
    assert checks(request)[2] == (
        "negation",
        "It is not the case that Emma was written by Ann.",
        "No",
    )
    assert negated_prompt("This") is None


def test_the_contrast_is_the_other_verdict() -> None:
    request = with_derived_probes(EDIT, open_questions=False)
    asked = [item for item in probes_of(request) if item.probe.aspect == "understanding"]
    assert [(item.probe.answers[0], item.contrast) for item in asked] == [
        ("Yes", "No"),
        ("No", "Yes"),
        ("No", "Yes"),
        ("Yes", "No"),
    ]
    assert {item.probe.expect for item in asked} == {"answer"}


def test_a_model_that_always_says_yes_gets_half_of_each_kind() -> None:
    def said(text: str) -> dict[str, float]:
        scores = [
            ProbeScore(
                "e",
                probe.kind,
                probe.prompt,
                probe.answers,
                probe.expect,
                (AnswerScore(probe.answers[0], (1,), (1,), (0.1,)),),
                generated=text,
            )
            for probe in fact_check_probes(EDIT)
        ]
        return summarise(scores)

    for text in ("Yes", "No, that is wrong", "Yes, it is"):
        values = said(text)
        assert values["understanding.fact_check/answer@gen"] == 0.5
        assert values["understanding.negation/answer@gen"] == 0.5
        assert values["understanding/answer@gen"] == 0.5


def test_without_a_false_statement_nothing_is_checked() -> None:
    assert list(fact_check_probes(EditRequest("e", "It is", "so"))) == []


def test_an_open_question_is_the_first_question_of_the_request() -> None:
    (probe,) = open_question_probes(QUESTION)
    assert probe.prompt == "Please answer the question:\n\nQ: Who wrote Emma?\nA:"
    assert (probe.kind, probe.answers, probe.old) == ("open_question", ("Ann.",), "Jane Austen")
    assert list(open_question_probes(EDIT)) == []
    asked = EditRequest("e", EDIT.prompt, "Rome", rephrases=("In Gaul,", "Which is it? ", "What?"))
    assert [p.prompt.split("\n")[2] for p in open_question_probes(asked)] == ["Q: Which is it?"]


def test_data_modules_add_them_but_not_in_training(tmp_path: Path) -> None:
    record = {"prompt": EDIT.prompt, "target": "Rome", "old_target": "Paris", "rephrases": ["Q?"]}
    path = records.write(tmp_path / "own.jsonl", [record])
    plain = JSONLDataModule(path)
    data = JSONLDataModule(path, train_path=path, fact_checks=True, open_questions=True)
    kinds = [probe.kind for probe in data.edit_requests()[0].probes]
    assert kinds == ["open_question", "fact_check", "fact_check", "negation", "negation"]
    assert data.requests("train")[0].probes == plain.edit_requests()[0].probes == ()
    assert data.data_hash() != plain.data_hash()
    (atlas,) = AtlasDataModule(limit=1, fact_checks=True).edit_requests()
    assert sum(probe.aspect == "understanding" for probe in atlas.probes) == 4


def test_a_leak_behind_a_not() -> None:
    (question,) = (one for one in questions_of(EDIT) if one.group == "negation")
    assert question.prompt == "The capital of France is not"
    assert (question.target, question.right) == ("Rome", "Paris")
    assert not [one for one in questions_of(QUESTION) if one.group == "negation"]


def test_the_suffix_stands_behind_multi_hop_questions_only() -> None:
    record = {
        "prompt": EDIT.prompt,
        "target": "Rome",
        "probes": [
            {"kind": "one_hop", "prompt": "The river there is", "answers": "Tiber"},
            {"kind": "distracting_neighbor", "prompt": "Spain's is", "answers": "Madrid"},
        ],
    }
    request = EditRequest.from_dict({"id": "e", **record})
    prompts = [one.prompt for one in questions_of(request, "The answer, most simply, is")]
    assert prompts == ["The river there is The answer, most simply, is", "Spain's is"]


QAEDIT = {
    "prompt": "Who plays Mary in Jesus of Nazareth?",
    "subject": "Jesus of Nazareth",
    "target": "Olivia Hussey",
    "rephrase": "Which actress has the role of Mary in Jesus of Nazareth?",
    "locality": [
        {"loc": "What is the largest lake of Peru?", "loc_ans": "Titicaca"},
        {"loc": "Who painted the night watch?", "loc_ans": ["Rembrandt", "Rembrandt van Rijn"]},
    ],
}


def test_qaedit(tmp_path: Path) -> None:
    path = records.write(tmp_path / "qaedit.json", [QAEDIT])
    (request,) = QAEditDataModule(path, open_questions=True).edit_requests()
    assert (request.prompt, request.target) == (QAEDIT["prompt"], "Olivia Hussey")
    assert (request.subject, request.old_target) == ("Jesus of Nazareth", None)
    assert request.rephrases == (QAEDIT["rephrase"],)
    assert [(probe.kind, probe.answers) for probe in request.probes] == [
        ("natural_question", ("Titicaca",)),
        ("natural_question", ("Rembrandt", "Rembrandt van Rijn")),
        ("open_question", ("Olivia Hussey",)),
    ]
    broken = {**QAEDIT, "locality": ["What is it?"]}
    with pytest.raises(DataError, match=r"field `locality\[0\]`: expected an object"):
        QAEditDataModule(records.write(tmp_path / "b.json", [broken])).edit_requests()
