"""Facts to trace, from files of known facts and of edits."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.analysis.tracing.facts import Fact, read_facts
from lightning_edit.exceptions import DataError
from tests.conftest import shared_path

KNOWN = {
    "known_id": 0,
    "subject": "Miles Davis",
    "attribute": "trumpet",
    "template": "{} plays the",
    "prediction": " trumpet, and",
    "prompt": "Miles Davis plays the",
}


def written(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(records))
    return path


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in KNOWN.items() if name not in names}


EXPECTED = Fact("Miles Davis plays the", "Miles Davis", 0, "trumpet")


@pytest.mark.parametrize("left_out", [(), ("prompt",), ("template",), ("prediction",)])
def test_known_facts(left_out: tuple[str, ...], tmp_path: Path) -> None:
    assert read_facts(written(tmp_path, without(*left_out))) == [EXPECTED]


def test_the_prediction_stands_in_for_the_attribute(tmp_path: Path) -> None:
    (fact,) = read_facts(written(tmp_path, without("attribute")))
    assert fact.answer == "trumpet, and"


def test_a_template_tells_which_occurrence_is_the_subject(tmp_path: Path) -> None:
    record = KNOWN | {
        "subject": "Rome",
        "template": "Unlike Rome, {} is in",
        "attribute": "Georgia",
    }
    (fact,) = read_facts(written(tmp_path, record | {"prompt": "Unlike Rome, Rome is in"}))
    assert (fact.start, fact.end) == (13, 17)


def test_edits_give_their_old_answers(tmp_path: Path) -> None:
    edit = {"prompt": "The capital of France is", "subject": "France", "target": "Rome"}
    path = written(tmp_path, edit | {"old_target": "Paris"}, edit | {"id": "no old answer"})
    assert read_facts(path) == [Fact("The capital of France is", "France", 15, "Paris")]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (KNOWN | {"subject": "Coltrane", "template": None}, "text that contains 'Coltrane'"),
        (without("prompt") | {"template": "plays the"}, "text with one {}"),
        (KNOWN | {"attribute": ""}, "field `attribute`"),
        ({"prompt": "It is", "subject": "It", "target": "so"}, "old_target"),
    ],
)
def test_what_is_no_fact(record: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_facts(written(tmp_path, record))
    assert told in str(caught.value)


def test_the_authors_known_facts() -> None:
    facts = read_facts(shared_path("data/known_facts/known_1000.json"))
    assert len(facts) > 1000
    assert all(fact.prompt[fact.start : fact.end] == fact.subject for fact in facts)
