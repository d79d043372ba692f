"""``lightning-edit data check``: counts, oddities, errors and the exit status."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.cli.data import inspect, main
from tests.datamodules import records


def findings(path: str) -> dict[str, int]:
    return {finding.what: finding.count for finding in inspect(path).findings}


def own(prompt: str, target: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "target": target, "subject": prompt.split()[0], **fields}


def test_counts_per_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.write(tmp_path / "a.json", [records.KNOWEDIT, records.KNOWEDIT])
    assert inspect(path).probes == {
        "rewrite": 2,
        "rephrase": 2,
        "relation_specificity": 2,
        "forgetfulness": 2,
        "subject_alias": 2,
        "reversed_relation": 2,
        "one_hop": 2,
    }
    assert main(["check", path]) == 0
    shown = capsys.readouterr()
    assert "KnowEdit; records: 2, edits: 2" in shown.out
    assert "portability" in shown.out
    assert "forgetfulness" in shown.out
    assert shown.err == ""


def test_conflicts_duplicates_and_edits_that_change_nothing(tmp_path: Path) -> None:
    path = records.write(
        tmp_path / "a.jsonl",
        [
            own("Oslo lies in", "Peru"),
            own("oslo  lies in", "Chad"),
            own("Lima lies in", "Chad"),
            own("Lima lies in", "Chad"),
            own("Rome lies in", "Italy", old_target="italy"),
        ],
    )
    report = inspect(path)
    assert {finding.what: finding.examples for finding in report.findings} == {
        "conflicting edits (one fact, several targets)": (
            "records 1, 2: 'Oslo lies in' → 'Peru', 'Chad'",
        ),
        "duplicate prompts (with one target)": ("records 3, 4: 'Lima lies in'",),
        "target equal to the old target": ("record 5: 'Italy'",),
    }
    assert main(["check", path]) == 0


def test_one_subject_and_relation_in_two_wordings_conflict(tmp_path: Path) -> None:
    rewrite = records.ROME["requested_rewrite"]
    other = {**rewrite, "prompt": "{} goes by", "target_new": {"str": "Bern"}}
    path = records.write(
        tmp_path / "a.json",
        [records.ROME, {**records.ROME, "case_id": 9, "requested_rewrite": other}],
    )
    (finding,) = inspect(path).findings
    assert finding.examples == ("records 1, 2: 'Danube (P131)' → 'Oslo', 'Bern'",)


def test_subjects_and_empty_answers(tmp_path: Path) -> None:
    path = records.write(
        tmp_path / "a.json",
        [
            {**records.EASYEDIT, "subject": "Wien"},
            {**records.EASYEDIT, "case_id": 9, "prompt": "So goes danube by", "target_new": "Rome"},
            {**records.EASYEDIT, "case_id": 10, "prompt": "Danube is", "locality_ground_truth": ""},
        ],
    )
    assert findings(path) == {
        "no locality probe": 1,
        "subject not in its prompt": 1,
        "subject spelled in another case in its prompt": 1,
        "empty answers, probe left out": 1,
    }


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [{"prompt": "a", "target": n} for n in range(25)]
    same = [own(f"Oslo{n} is", "x", old_target="x") for n in range(9)]
    path = records.write(tmp_path / "a.jsonl", [*same, *wrong])
    assert main(["check", path]) == 2
    shown = capsys.readouterr()
    assert "9 × target equal to the old target" in shown.out
    assert "+6 more" in shown.out
    assert shown.err.count("error: ") == 10
    assert "+15 more errors" in shown.err


def test_json_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = records.write(tmp_path / "a.json", [records.ZSRE_HOP])
    assert main(["check", "--json", good, str(tmp_path / "none.json")]) == 2
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False
    assert [file["requests"] for file in content["files"]] == [1, 0]
    assert content["files"][0]["probes"]["one_hop"] == 1
    assert "no such file" in content["files"][1]["errors"][0]


def test_a_form_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.write(tmp_path / "a.json", [records.ZSRE])
    assert main(["check", "--format", "zsre", path]) == 0
    assert main(["check", "--format", "knowedit", path]) == 2
    assert "choose the data set of that form" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--format", "csv", path])


def test_ten_thousand_records_take_a_moment(tmp_path: Path) -> None:
    path = records.write(
        tmp_path / "a.json", [{**records.EASYEDIT, "case_id": n} for n in range(10_000)]
    )
    # In a process of its own, without the type checks that the tests switch on.
    code = (
        "import sys, time; from lightning_edit.cli.data import inspect; "
        "assert inspect(sys.argv[1]).requests == 10_000; print(time.process_time())"
    )
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4  # 0.6 s on an idle core, start included
