"""Forms whose questions belong together: MQuAKE's cases and RippleEdits' tests."""

from pathlib import Path
from typing import Any

import pytest

from lightning_edit.cli.data import main
from lightning_edit.datamodules import MQuAKEDataModule, RippleEditsDataModule
from lightning_edit.datamodules.formats import ParsedFile, read_requests
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, Group, Probe
from tests.conftest import shared_path
from tests.datamodules import records


def read(folder: Path, *values: Any, name: str = "data.json") -> ParsedFile:
    return read_requests(records.write(folder / name, values))


def of_kind(request: EditRequest, kind: str) -> list[Probe]:
    return [probe for probe in request.probes if probe.kind == kind]


def test_mquake_has_a_request_an_edit_and_the_questions_once(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.MQUAKE)
    first, second = parsed_file.requests
    assert (parsed_file.form, parsed_file.records) == ("mquake", 1)
    assert (first.id, second.id, first.case, second.case) == (
        "mquake-3-1", "mquake-3-2", "mquake-3", "mquake-3",
    )  # fmt: skip
    assert (first.prompt, first.subject_start) == ("The Grey Lake was written by", 0)
    assert (second.target, second.old_target) == ("Peru", "Norway")
    assert first.rephrases == ("Who wrote The Grey Lake?",)
    questions = of_kind(first, "multi_hop")
    assert [probe.prompt for probe in questions] == records.MQUAKE["questions"]
    assert {probe.answers for probe in questions} == {("Lima", "City of Kings")}
    assert {probe.old for probe in questions} == {"Stockholm"}
    assert questions[0].path[2] == ("Peru", "capital", "Lima")
    assert second.probes == ()
    assert parsed_file.relations == ["P50", "P27"]


def test_mquakes_premises_are_the_hops_that_no_edit_writes(tmp_path: Path) -> None:
    request = read(tmp_path, records.MQUAKE).requests[0]
    test = Group("multi_hop", "multi_hop", "any", ("hop 3",))
    assert {probe.group for probe in of_kind(request, "multi_hop")} == {test}
    assert [(p.prompt, p.answers, p.group) for p in of_kind(request, "premise")] == [
        ("What is the capital of Peru?", ("Lima",), Group("hop 3")),
        ("The capital of Peru is", ("Lima",), Group("hop 3")),
    ]


def test_ripple_edits_sentence_and_criteria(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.RIPPLE)
    (request,) = parsed_file.requests
    assert parsed_file.form == "rippleedits"
    # Both targets begin with "San": what the sentences share is no guide to where they begin.
    assert request.prompt == "The name of the capital city of Peru is"
    assert (request.subject, request.target, request.old_target) == (
        "Peru", "San Juan", "San Isidro",
    )  # fmt: skip
    found = {(p.kind, p.group.criterion) for p in request.probes if p.kind != "premise" and p.group}
    assert found == {
        ("relation_specificity", "relation_specificity"),
        ("reversed_relation", "logical_generalization"),
        ("subject_alias", "subject_aliasing"),
        ("one_hop", "compositionality_i"),
    }
    assert [p.group.rule for p in of_kind(request, "reversed_relation") if p.group] == ["all"] * 2
    assert of_kind(request, "one_hop")[0].answers == ("Ada", "Ada too")


def test_ripple_edits_conditions_become_premises_once(tmp_path: Path) -> None:
    parsed_file = read(tmp_path, records.RIPPLE)
    premises = {
        p.prompt: p.group.name for p in of_kind(parsed_file.requests[0], "premise") if p.group
    }
    assert sorted(premises) == ["The mayor of San Juan is", "The name of the currency in Peru is"]
    (hop,) = of_kind(parsed_file.requests[0], "one_hop")
    assert hop.group is not None
    assert hop.group.premises == (premises["The mayor of San Juan is"],)
    assert parsed_file.note_counts() == {
        "empty answers, probe left out": 1,
        "empty prompt, probe left out": 1,
    }


@pytest.mark.parametrize(
    ("sentence", "prompt", "subject", "target"),
    [
        ("The gender of X is y.", "The gender of X is", "X", "y"),
        (
            "The name of the country of citizenship of the Duke of X is Y.",
            "The name of the country of citizenship of the Duke of X is", "the Duke of X", "Y",
        ),
        (
            "The name of the sports team which X is a member of is Y.",
            "The name of the sports team which X is a member of is", "X", "Y",
        ),
        (
            "The name of the country which X is the capital of is Y",
            "The name of the country which X is the capital of is", "X", "Y",
        ),
        ("X of Y is followed by Z.", "X of Y is followed by", "X of Y", "Z"),
        ("The names of the siblings of X are Y.", "The names of the siblings of X are", "X", "Y"),
        ("The number of children X has is 3.", "The number of children X has is", "X", "3"),
        ("The place of birth of X is Y.", "The place of birth of X is", "X", "Y"),
        ("The name of the award X won is Y.", "The name of the award X won is", "X", "Y"),
    ],
)  # fmt: skip
def test_ripple_edits_sentences(
    tmp_path: Path, sentence: str, prompt: str, subject: str, target: str
) -> None:
    record = {"edit": {"prompt": sentence, "target_id": "Q1"}, "Forgetfulness": []}
    (request,) = read(tmp_path, record).requests
    assert (request.prompt, request.subject, request.target) == (prompt, subject, target)
    assert request.old_target is None


@pytest.mark.parametrize("name", ["previous_fact", "original_fact"])
def test_ripple_edits_old_target_by_either_name_and_unknown(tmp_path: Path, name: str) -> None:
    def edit(before: str) -> dict[str, Any]:
        facts = {"prompt": "The gender of X is male.", "target_id": "Q1", name: {"prompt": before}}
        return {"edit": facts, "Forgetfulness": []}

    known, unknown = read(
        tmp_path, edit("The gender of X is female."), edit("The gender of X is .")
    ).requests
    assert (known.prompt, known.target, known.old_target) == (
        "The gender of X is",
        "male",
        "female",
    )
    assert (unknown.prompt, unknown.target, unknown.old_target) == (known.prompt, "male", None)


def test_a_sentence_that_cannot_be_divided_is_left_out_and_noted(tmp_path: Path) -> None:
    odd = {"edit": {"prompt": "Nobody knows", "target_id": "Q1"}, "Forgetfulness": []}
    parsed_file = read(tmp_path, odd, records.RIPPLE)
    assert [request.id for request in parsed_file.requests] == ["rippleedits-2"]
    assert "where the answer begins cannot be told" in next(iter(parsed_file.note_counts()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested_rewrite": [{"prompt": "a"}]}, r"a field `requested_rewrite\[0\].subject`"),
        ({"requested_rewrite": ["a"]}, r"`requested_rewrite\[0\]`: expected an object"),
        ({"case_id": 1.5}, "`case_id`: expected a number or text, got the number 1.5"),
        ({"orig": {"new_triples_labeled": [["a", "b"]]}}, "`orig.new_triples_labeled`"),
        ({"new_single_hops": "x"}, "`new_single_hops`: expected a list of objects"),
    ],
)
def test_a_broken_case_says_where(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, {**records.MQUAKE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": {}}, "a field `edit.prompt`"),
        ({"Forgetfulness": [{"test_condition": "MAYBE"}]}, "expected OR or AND"),
        ({"Forgetfulness": [{"test_queries": [3]}]}, "expected an object, got the number 3"),
    ],
)
def test_a_broken_test_says_where(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, {**records.RIPPLE, **change})


def test_a_limit_counts_cases_and_cuts_none(tmp_path: Path) -> None:
    cases = [{**records.MQUAKE, "case_id": number} for number in range(3)]
    path = records.write(tmp_path / "mquake.json", cases)
    data = MQuAKEDataModule(path, limit=2)
    assert [request.case for request in data.edit_requests()] == ["mquake-0"] * 2 + ["mquake-1"] * 2
    ripple = RippleEditsDataModule(records.write(tmp_path / "popular.json", [records.RIPPLE]))
    assert len(ripple.edit_requests()) == 1


def test_groups_of_ones_own_read_back(tmp_path: Path) -> None:
    (request, _) = read(tmp_path, records.MQUAKE).requests
    own = read(tmp_path, request.to_dict(), name="own.jsonl").requests
    assert own == [request]
    probe = {"kind": "multi_hop", "prompt": "a", "answers": "b", "group": {"name": "t"}}
    record = {"prompt": "A b", "target": "c", "probes": [probe]}
    for name, value, message in [
        ("criterion", "hops", "criterion`: expected one of multi_hop"),
        ("rule", "most", "rule`: expected one of any, all"),
        ("names", "t", "unknown field `probes\\[0\\].group.names`.*Did you mean `name`"),
    ]:
        probe["group"] = {"name": "t", name: value}
        with pytest.raises(DataError, match=message):
            read(tmp_path, record, name="own.jsonl")


def test_a_triple_reads_back_and_a_broken_one_is_said(tmp_path: Path) -> None:
    record = {"prompt": "A b", "target": "c", "triple": ["a", "r", "c"]}
    (request,) = read(tmp_path, record, name="own.jsonl").requests
    assert request.triple == ("a", "r", "c")
    assert EditRequest.from_dict(request.to_dict()) == request
    with pytest.raises(DataError, match="`triple`: expected a list of"):
        read(tmp_path, {**record, "triple": ["a", "r"]}, name="own.jsonl")


def test_data_check_knows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, record in (("MQuAKE", records.MQUAKE), ("RippleEdits", records.RIPPLE)):
        assert main(["check", records.write(tmp_path / f"{form}.json", [record])]) == 0
        assert form in capsys.readouterr().out


def test_real_mquake_hops_agree_with_its_triples() -> None:
    parsed_file = read_requests(shared_path("data/mquake/MQuAKE-CF_AKEW.json"))
    assert (parsed_file.records, len(parsed_file.requests)) == (354, 436)
    multi_hop = [
        probe for request in parsed_file.requests for probe in of_kind(request, "multi_hop")
    ]
    assert len(multi_hop) == 3 * 354
    for probe in multi_hop:
        assert probe.group is not None
        assert 0 <= len(probe.group.premises) < len(probe.path)
