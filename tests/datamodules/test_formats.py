"""Each published form, and a user's own, becomes the request it describes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.datamodules.formats import ParsedFile, read_requests
from lightning_edit.types import EditRequest
from lightning_edit.types.subject_names import candidates
from tests.datamodules import records


def read(folder: Path, *values: Any, name: str = "data.json") -> ParsedFile:
    return read_requests(records.write(folder / name, values))


def probes(request: EditRequest) -> list[tuple[str, str, tuple[str, ...], str]]:
    return [(p.kind, p.prompt, p.answers, p.expect) for p in request.probes]


def test_zsre(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.ZSRE_HOP)
    (request,) = parsed_file.requests
    assert parsed_file.form == "zsre"
    assert (request.prompt, request.target) == ("Which country is Lake Baikal in?", "Peru")
    assert (request.subject, request.subject_start) == ("Lake Baikal", 17)
    assert request.old_target == "Russia"
    assert request.rephrases == ("In what country does Lake Baikal lie?",)
    assert probes(request) == [
        (
            "natural_question",
            "nq question: who painted the night watch?",
            ("Rembrandt",),
            "unchanged",
        ),
        ("one_hop", "What is the capital of the country Lake Baikal is in?", ("Lima",), "answer"),
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            records.ZSRE_INVERSE,
            ("reversed_relation", "Which lake lies in Peru?", ("Lake Baikal",), "answer"),
        ),
        (
            records.ZSRE_ALIAS,
            ("subject_alias", "Which country is Ozero Baykal in?", ("Peru",), "answer"),
        ),
    ],
)
def test_zsre_portability_splits(tmp_path: Path, record: Any, expected: Any) -> None:
    assert probes(read(tmp_path, record).requests[0])[1:] == [expected]


def test_zsre_without_an_old_answer_takes_the_prediction(tmp_path: Path) -> None:
    assert read(tmp_path, {**records.ZSRE, "answers": []}).requests[0].old_target == "Mongolia"


def test_zsre_without_a_new_answer_is_left_out_and_noted(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, {**records.ZSRE, "alt": " "}, records.ZSRE)
    assert [request.id for request in parsed_file.requests] == ["zsre-2"]
    assert parsed_file.records == 2
    assert parsed_file.note_counts() == {"no new answer, record left out": 1}


def test_counterfact_as_rome_has_it(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.ROME)
    (request,) = parsed_file.requests
    assert parsed_file.form == "counterfact"
    assert request.id == "counterfact-7"
    assert request.prompt == "The river Danube flows through"
    assert (request.subject, request.subject_start) == ("Danube", 10)
    assert (request.target, request.old_target) == ("Oslo", "Vienna")
    assert len(request.rephrases) == 2
    # Attribute and generation prompts are no probes.
    assert probes(request) == [
        ("neighborhood", "The Wien flows through", ("Vienna",), "unchanged"),
        ("neighborhood", "The Liesing flows through", ("Vienna",), "unchanged"),
    ]


def test_counterfact_subject_is_where_the_braces_are(tmp_path: Path) -> None:
    rewrite = {**records.ROME["requested_rewrite"], "prompt": "In Are, {} is", "subject": "Ar"}
    request = read(tmp_path, {**records.ROME, "requested_rewrite": rewrite}).requests[0]
    assert request.prompt == "In Are, Ar is"
    assert request.subject_start == 8


def test_counterfact_locality_and_portability_splits(tmp_path: Path) -> None:
    locality, alias = read(
        tmp_path, records.ROME_LOCALITY, {**records.ROME_ALIAS, "case_id": 9}
    ).requests
    assert probes(locality)[2:] == [
        (
            "distracting_neighbor",
            "The river Danube flows through Oslo. The Wien flows through",
            ("Vienna",),
            "unchanged",
        ),
        ("other_attribution", "The Danube ends in", ("the Black Sea",), "unchanged"),
    ]
    assert probes(alias)[2:] == [
        ("one_hop", "The Danube flows through the capital of", ("Norway",), "answer"),
        ("subject_alias", "The river Donau flows through", ("Oslo",), "answer"),
    ]


def test_counterfact_as_easyedit_has_it_and_mixed_with_romes(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.EASYEDIT, records.ROME)
    flat, rome = parsed_file.requests
    assert parsed_file.form == "counterfact"
    assert (flat.prompt, flat.subject, flat.target, flat.old_target) == (
        rome.prompt,
        rome.subject,
        rome.target,
        rome.old_target,
    )
    assert flat.rephrases == ("The banks of the Danube are in",)
    assert probes(flat) == [("neighborhood", "The Wien flows through", ("Vienna",), "unchanged")]


def test_knowedit(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.KNOWEDIT)
    (request,) = parsed_file.requests
    assert parsed_file.form == "knowedit"
    assert request.old_target == "Russia"
    assert request.rephrases == ("Lake Baikal lies in the country of",)
    assert [(p.kind, p.answers) for p in request.probes] == [
        ("one_hop", ("Lima", "Ciudad de los Reyes")),
        ("reversed_relation", ("Lake Baikal",)),
        ("subject_alias", ("Peru", "Perú")),
        ("relation_specificity", ("1642 m",)),
        ("forgetfulness", ("Russia",)),
    ]
    assert {p.aspect for p in request.probes} == {"portability", "locality"}


def test_knowedit_wikibio_names_and_lists(tmp_path: Path) -> None:
    question = {"prompt": ["Baikal was born in"], "ground_truth": [3]}
    record = {
        "text": "Baikal was",
        "labels": "a lake",
        "concept": "baikal",
        "locality": {"Relation_Specificity": [question, {"prompt": None, "ground_truth": "x"}]},
    }
    parsed_file = read(tmp_path, record, {"prompt": "A b", "target_new": "c", "subject": "Z"})
    first, second = parsed_file.requests
    assert (first.prompt, first.target, first.subject) == ("Baikal was", "a lake", "Baikal")
    assert probes(first) == [("relation_specificity", "Baikal was born in", ("3",), "unchanged")]
    assert second.subject is None
    assert parsed_file.note_counts() == {
        "empty prompt, probe left out": 1,
        "subject spelled in another case in its prompt": 1,
        "subject not in its prompt": 1,
    }


def test_own_facts(tmp_path: Path) -> None:
    (request,) = read(tmp_path, records.OWN, name="own.jsonl").requests
    assert (request.id, request.subject_start) == ("meeting-room", 4)
    assert request.probes[1].path[1] == ("room 4", "floor", "second")
    assert [p.expect for p in request.probes] == ["unchanged", "answer"]


def test_what_a_request_writes_reads_back(tmp_path: Path) -> None:
    (request,) = read(tmp_path, records.OWN, name="own.jsonl").requests
    assert read(tmp_path, request.to_dict(), name="again.jsonl").requests == [request]


def test_missing_subject_is_found_or_left_open(tmp_path: Path) -> None:
    prompts = ["The capital of France is", "the old bridge is in"]
    parsed_file = read(tmp_path, *({"prompt": p, "target": "x"} for p in prompts), name="own.jsonl")
    assert [request.subject for request in parsed_file.requests] == ["France", None]
    assert [request.id for request in parsed_file.requests] == ["fact-1", "fact-2"]
    assert "add it for editors that need one" in parsed_file.notes[1].kind


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What is the capital of New South Wales?", ["New South Wales"]),
        ("The University of Oxford is in", ["University of Oxford"]),
        ("Apollo 11's commander was", ["Apollo 11"]),
        ('Who wrote "War and Peace"?', ["War and Peace"]),
        ("The mother tongue of Marie Curie, born in Warsaw, is", ["Marie Curie", "Warsaw"]),
        ("日本の首都は", []),
    ],
)
def test_candidates(prompt: str, expected: list[str]) -> None:
    assert candidates(prompt) == expected


def test_json_lines_in_a_json_file_and_a_byte_order_mark(tmp_path: Path) -> None:
    lines = records.write(tmp_path / "a.jsonl", [records.OWN, {**records.OWN, "id": "b"}])
    text = "\n" + Path(lines).read_text(encoding="utf-8")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    parsed_file = read_requests(tmp_path / "b.json")
    assert [where.line for where in parsed_file.locations] == [2, 3]
    assert "record 2 (line 3)" in str(parsed_file.locations[1])


def test_reading_files_loads_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, lightning_edit.cli.data; "
        "print([m for m in ('torch', 'lightning', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
