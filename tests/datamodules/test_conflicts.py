"""Conflicting edits: several targets for one fact, and premises that another case edits."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.datamodules import (
    CounterFactDataModule,
    InstructedDataModule,
    JSONLDataModule,
    MQuAKEDataModule,
    ZsREDataModule,
)
from lightning_edit.datamodules.conflicts import conflicts_of, overwritten_premises
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest, Probe
from tests.datamodules import records


def mquake(number: int, **edits: str) -> dict[str, Any]:
    """A case of MQuAKE with other edits; ``writer`` and ``home`` are the targets of its two."""
    record = copy.deepcopy(records.MQUAKE)
    record["case_id"] = number
    for place, name in enumerate(("writer", "home")):
        if name in edits:
            record["requested_rewrite"][place]["target_new"]["str"] = edits[name]
    return record


def test_cases_of_mquake_that_clash_are_named_and_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agreeing = mquake(6)
    path = records.write(
        tmp_path / "a.json",
        [mquake(3), mquake(4, writer="Cy Dahl"), mquake(5, home="Chad"), agreeing],
    )
    requests = MQuAKEDataModule(path).edit_requests()
    assert len(requests) == 8
    assert "facts with several targets: 2, in 8 of 8 edits" in caplog.text
    assert "'The Grey Lake was written by' → 'Ada Lind', 'Cy Dahl'" in caplog.text
    assert "mquake-3-1, mquake-4-1" in caplog.text
    assert "--data.conflicts drop" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        kept = MQuAKEDataModule(path, conflicts="drop").edit_requests()
    assert [one.case for one in kept] == ["mquake-3"] * 2 + ["mquake-6"] * 2
    assert "2 of 4 cases of the test split conflict" in caplog.text
    assert "several targets" not in caplog.text
    # As many as asked for, of those that can be edited together.
    few = MQuAKEDataModule(path, conflicts="drop", limit=2).edit_requests()
    assert few == kept
    # The first cases alone have no conflict, so there is nothing to warn of.
    caplog.clear()
    MQuAKEDataModule(path, limit=1).edit_requests()
    assert "several targets" not in caplog.text


def test_a_case_that_builds_on_what_another_case_edits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capital = {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Cusco"},
        "target_true": {"str": "Lima"},
        "subject": "Peru",
        "question": "What is the capital of Peru?",
    }
    other = copy.deepcopy(records.MQUAKE) | {"case_id": 9, "requested_rewrite": [capital]}
    path = records.write(tmp_path / "a.json", [mquake(3), other])
    data = MQuAKEDataModule(path)
    requests = data.edit_requests()
    assert "cases that build on a fact which another case edits: 1 of 2" in caplog.text
    assert "such as mquake-3 on one of mquake-9" in caplog.text
    assert "several targets" not in caplog.text
    assert overwritten_premises([requests[:2], requests[2:]]) == [(0, 1)]
    for order in ([mquake(3), other], [other, mquake(3)]):
        path = records.write(tmp_path / "b.json", order)
        kept = MQuAKEDataModule(path, conflicts="drop").edit_requests()
        assert {one.case for one in kept} == {f"mquake-{order[0]['case_id']}"}
    # An edit to what the premise says already takes nothing away.
    capital["target_new"] = {"str": "lima"}
    path = records.write(tmp_path / "c.json", [mquake(3), other])
    assert len(MQuAKEDataModule(path, conflicts="drop").edit_requests()) == 3


ROME = {**records.ROME, "case_id": 9}


@pytest.mark.parametrize(
    ("module", "rows"),
    [
        (ZsREDataModule, [records.ZSRE, {**records.ZSRE, "alt": "Kiruna"}]),
        (
            CounterFactDataModule,
            [
                records.ROME,
                {**ROME, "requested_rewrite": {
                    **ROME["requested_rewrite"],
                    "prompt": "{} goes by",
                    "target_new": {"str": "Bern"},
                }},
            ],
        ),
        (
            JSONLDataModule,
            [
                {"prompt": "ओस्लो यहाँ है:", "target": "पेरू"},
                {"prompt": "ओस्लो  यहाँ है:", "target": "चाड"},
            ],
        ),
    ],
    ids=["zsRE", "COUNTERFACT, two wordings of a relation", "own facts in another script"],
)  # fmt: skip
def test_every_data_module_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module: Any, rows: list[dict[str, Any]]
) -> None:
    path = records.write(tmp_path / "a.jsonl", rows)
    assert len(module(path).edit_requests()) == 2
    assert "facts with several targets: 1, in 2 of 2 edits" in caplog.text
    caplog.clear()
    (kept,) = module(path, conflicts="drop").edit_requests()
    assert kept == module(path).edit_requests()[0]


def test_tasks_with_instructions_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Oslo lies in", "target": one} for one in ("Peru", "Chad")]
    path = records.write(tmp_path / "a.jsonl", rows)
    data = InstructedDataModule({"counterfactual": JSONLDataModule(path)})
    assert len(data.edit_requests()) == 2
    assert "InstructedDataModule, test split: facts with several targets: 1" in caplog.text
    assert len(InstructedDataModule(data.tasks, conflicts="drop").edit_requests()) == 1


def test_training_facts_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Oslo lies in", "target": one} for one in ("Peru", "Chad")]
    path = records.write(tmp_path / "a.jsonl", rows)
    one = records.write(tmp_path / "b.jsonl", rows[:1])
    assert len(JSONLDataModule(one, train_path=path, conflicts="drop").requests("train")) == 2
    assert "several targets" not in caplog.text


def test_without_conflicts_nothing_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "Oslo lies in", "target": "Peru"},
        {"prompt": "OSLO lies  in", "target": "peru"},  # the same twice is no conflict
        {"prompt": "Lima lies in", "target": "Chad"},
    ]
    path = records.write(tmp_path / "a.jsonl", rows)
    plain, dropped = JSONLDataModule(path), JSONLDataModule(path, conflicts="drop")
    assert plain.data_hash() == dropped.data_hash()
    assert "several targets" not in caplog.text
    odd = JSONLDataModule(path)
    odd.conflicts = "no"  # type: ignore[assignment]
    with pytest.raises(DataError, match="`conflicts` of a data set must be keep or drop; got 'no'"):
        odd.edit_requests()


def test_a_premise_may_have_aliases_and_its_own_case_may_edit_it() -> None:
    premise = Probe.of("premise", "The capital of Peru is", ("Lima", "City of Kings"))
    with_premise = EditRequest("a", "Ada lives in", "Peru", "Ada", probes=(premise,))
    alias = EditRequest("b", "The capital of Peru is", "city of kings", "Peru")
    other = EditRequest("c", "The capital of Peru is", "Cusco", "Peru")
    assert overwritten_premises([[with_premise], [alias]]) == []
    assert overwritten_premises([[with_premise], [other]]) == [(0, 1)]
    assert overwritten_premises([[with_premise, other]]) == []
    assert [one.members for one in conflicts_of([with_premise, alias, other])] == [(1, 2)]
