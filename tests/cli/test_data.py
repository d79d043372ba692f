"""``lightning-edit data check``: counts, oddities, errors and the exit status."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.cli.data import inspect, main
from lightning_edit.datamodules.formats import read_requests
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


TEMPLATE = "special token or chat template in a prompt"
JOINED = "prompt and answer joined without a blank by rule"
AMBIGUOUS = "ambiguous subject"
INSIDE = "part of a longer word"


def flagged(path: str, what: str) -> list[str]:
    """Return the examples of the finding whose name begins so; none without such a finding."""
    report = inspect(path)
    found = [finding for finding in report.findings if finding.what.startswith(what)]
    return list(found[0].examples) if found else []


def test_chat_templates_in_prompts_are_pointed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = {"kind": "one_hop", "prompt": "Human: 東京は?\nAssistant:", "answers": "日本"}
    rows = [
        own("Oslo lies in", "Peru", rephrases=["[INST] Where is Oslo? [/INST]"]),
        own("Lima lies in", "Chad", probes=[probe]),
        own("Rome lies in", "Mali"),
    ]
    path = records.write(tmp_path / "a.jsonl", rows)
    first, second = flagged(path, TEMPLATE)
    assert first == "record 1: '[INST]' in '[INST] Where is Oslo? [/INST]'"
    assert second.startswith("record 2: 'Human:' in ")
    assert main(["check", path]) == 0
    assert "--lm_chat true" in capsys.readouterr().out
    assert flagged(records.write(tmp_path / "b.jsonl", rows[2:]), TEMPLATE) == []


def test_a_special_token_as_target_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [own("Oslo lies in", "Peru"), own("Lima lies in", "<|endoftext|>")]
    path = records.write(tmp_path / "a.jsonl", rows)
    assert main(["check", path]) == 2
    assert "record 2 (line 2), field `target`: " in capsys.readouterr().err
    inside = records.write(tmp_path / "c.jsonl", [own("Oslo lies in", "Peru</s>"), rows[0]])
    assert flagged(inside, "special token inside a target") == ["record 1: '</s>' in 'Peru</s>'"]
    published = records.write(tmp_path / "b.json", [{**records.EASYEDIT, "target_new": "</s>"}])
    assert "special token, which no reader sees" in inspect(published).errors[0]


@pytest.mark.parametrize(
    ("prompt", "subject", "fields", "kind", "example"),
    [
        ("Rome, says Rome, is in", "Rome", {}, AMBIGUOUS, "'Rome' at 0, 11 in "),
        ("東京と東京の知事は", "東京", {}, AMBIGUOUS, "'東京' at 0, 3 in "),
        ("Рим и Рим лежит в", "Рим", {}, AMBIGUOUS, "'Рим' at 0, 6 in "),
        ("Rome, says Rome, is in", "Rome", {"subject_start": 0}, AMBIGUOUS, None),
        ("Rome and Romeo are in", "Rome", {}, AMBIGUOUS, None),
        ("Romeo is in", "Rome", {}, INSIDE, "'Rome' in 'Romeo is in'"),
        ("Столица Франции —", "Франци", {}, INSIDE, "'Франци' in "),
        ("東京都の知事は", "東京", {}, INSIDE, None),
        ("Rome and Romeo are in", "Rome", {}, INSIDE, None),
    ],
)
def test_subjects_that_are_ambiguous_or_inside_words(
    tmp_path: Path,
    prompt: str,
    subject: str,
    fields: dict[str, Any],
    kind: str,
    example: str | None,
) -> None:
    row = {"prompt": prompt, "target": "x", "subject": subject, **fields}
    path = records.write(tmp_path / "a.jsonl", [row])
    found = flagged(path, kind)
    assert found == [] if example is None else found[0].startswith(f"record 1: {example}")
    # The same in the parsed records, and in those of published sets.
    notes = [note for note in read_requests(path).notes if note.kind.startswith(kind)]
    assert len(notes) == (example is not None)
    if not fields:
        published = {**records.EASYEDIT, "prompt": prompt, "subject": subject}
        other = records.write(tmp_path / "b.json", [published])
        assert flagged(other, kind) == found


def test_what_cannot_be_scored_or_typed_is_pointed_at(tmp_path: Path) -> None:
    facts = [
        own("The capitals are", "Oslo\nRome"),
        own("The capital of\u00a0Peru is", "Lima\u200b"),
        own("He wrote:\tit is", "Oslo"),
    ]
    found = findings(records.write(tmp_path / "a.jsonl", facts))
    counts = {what.split(" ")[0]: count for what, count in found.items()}
    assert counts["line"] == 1
    assert counts["character"] == 2


def test_joined_answers_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "法国的首都是", "target": "巴黎"},
        {"prompt": 'It is called "', "target": "Rome"},
        {"prompt": "Q: Where?\nA:\n", "target": "Rome"},
        {"prompt": "เมืองหลวงคือ", "target": "ปารีส"},
        {"prompt": "日本の首都は", "target": "東京", "separator": " "},
        {"prompt": "The capital is", "target": "Rome"},
        {"prompt": "The capital is ", "target": "Rome"},
        {"prompt": "The capital is", "target": " Rome"},
        {"prompt": "เมืองหลวงคือ", "target": "Paris"},
    ]
    path = records.write(tmp_path / "a.jsonl", rows)
    (finding,) = [one for one in inspect(path).findings if one.what.startswith(JOINED)]
    assert finding.count == 4
    assert finding.examples[0] == "record 1: '法国的首都是' + '巴黎'"
    assert flagged(records.write(tmp_path / "b.jsonl", rows[4:]), JOINED) == []


def test_separators_of_records_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [own(f"Oslo{n} is", "x", separator=between) for n, between in enumerate(["", "", "\n"])]
    path = records.write(tmp_path / "a.jsonl", [*rows, own("Rome is", "x")])
    assert inspect(path).separators == {"": 2, "\n": 1}
    assert main(["check", path]) == 0
    assert "'': 2, '\\n': 1; none of their own: 1" in capsys.readouterr().out
    assert inspect(records.write(tmp_path / "b.jsonl", [own("Rome is", "x")])).separators == {}


def test_a_table_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,target,subject\nOslo is in,1969,Oslo\nLima is in,,Lima\n")
    assert main(["check", str(path)]) == 2
    shown = capsys.readouterr()
    assert "own facts; records: 2, edits: 1" in shown.out
    assert "a.csv, record 2 (line 3), field `target`: expected text, got null" in shown.err
