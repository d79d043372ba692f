"""Whatever is wrong with a file ends in one sentence: where, what was expected, what to do."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.cli.data import inspect, main
from lightning_edit.datamodules.formats import read_requests
from lightning_edit.datamodules.formats.files import read_values
from lightning_edit.exceptions import DataError
from tests.datamodules import records

DEEP = "[" * 60_000 + "]" * 60_000
OWN = '{"prompt": "The Rhine is in", "target": "Asia", "subject": "Rhine"}'

FILES: dict[str, tuple[bytes, str]] = {
    "empty.json": (b"", "file is empty; expected records as a JSON list or JSON Lines"),
    "blank.jsonl": (b" \n\n", "file is empty"),
    "words.json": (b"hello", r"not valid JSON at line 1, column 1.*correct it there"),
    "cut.json": (f"[{OWN},\n{OWN[:30]}".encode(), "line 2.*ends in the middle; copy it again"),
    "cut.jsonl": (f"{OWN}\n{OWN[:30]}".encode(), "record 2 .line 2.*write each record whole"),
    "list.json": (b"[]", "the list has no records; expected at least one"),
    "object.json": (b'{"data": [1]}', "list of records, got an object with the fields data; put"),
    "number.json": (b"3", "expected a list of records, got the number 3"),
    "binary.json": (bytes(range(256)), "got the byte 0x80 at position 128; save the file as UTF-8"),
    "latin.json": ('[{"prompt": "café"}]'.encode("latin-1"), "byte 0xe9.*save the file as UTF-8"),
    "utf16.json": (f"[{OWN}]".encode("utf-16"), "got UTF-16 text; save it as UTF-8"),
    "packed.json": (b"\x1f\x8b\x08abc", "gzip archive; unpack it"),
    "nan.json": (b'[{"prompt": "a", "target": NaN}]', "NaN is not JSON; write null"),
    "infinite.jsonl": (b'{"prompt": "a", "target": -Infinity}', "-Infinity is not JSON"),
    "deep.json": (DEEP.encode(), "nested too deeply.*expected a list of flat objects"),
    "deep.jsonl": (f'{{"prompt": {DEEP}}}'.encode(), "record 1 .line 1.: .*nested too deeply"),
    "digits.json": (f'[{{"target": {"9" * 5000}}}]'.encode(), "thousands of digits; put it in"),
    "twice.jsonl": (b'{"prompt": "a", "prompt": "b"}', "'prompt' is given twice.*keep one"),
    "null.json": (b"[null]", r"record 1: expected an object with named fields, got null; write"),
    "values.jsonl": (b'"a"\n2\n', r"record 1 .line 1.: expected an object.*got the text 'a'"),
    "strange.json": (b'[{"a": 1}]', "has the fields a. Known forms: mquake"),
    "cases.json": (b'[{"requested_rewrite": []}]', "`requested_rewrite`: expected at least one"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_records(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_requests(tmp_path / name)
    assert name in str(caught.value)
    assert main(["check", str(tmp_path / name)]) == 2
    assert "error: " in capsys.readouterr().err


def changed(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**record, **fields}


def rewrite(**fields: Any) -> dict[str, Any]:
    return changed(records.ROME, requested_rewrite=records.ROME["requested_rewrite"] | fields)


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def own_probe(**fields: Any) -> dict[str, Any]:
    return changed(
        records.OWN, probes=[{"kind": "one_hop", "prompt": "a", "answers": "b"} | fields]
    )


RECORDS: list[tuple[dict[str, Any], str]] = [
    (without(records.ZSRE, "alt"), "expected a field `alt`, got none of that name; add it"),
    (
        changed(records.ZSRE, alt=5),
        "field `alt`: expected text, got the number 5; put it in quotes",
    ),
    (changed(records.ZSRE, alt=None), "field `alt`: expected text, got null"),
    (changed(records.ZSRE, src=""), "field `src`: expected text, got empty text; fill it in"),
    (changed(records.ZSRE, subject={}), "field `subject`: expected text, got an empty object"),
    (changed(records.ZSRE, loc=[]), "field `loc`: expected text, got a list of 0"),
    (changed(records.ZSRE, portability=True), "`portability`: expected an object, got true"),
    (changed(records.ZSRE, portability={"New Answer": "x"}), "`portability.New Question`"),
    (rewrite(prompt="It is in"), "`requested_rewrite.prompt`: expected text with one {}.*once"),
    (rewrite(target_new="Oslo"), "target_new`: expected an object, got the text 'Oslo'"),
    (rewrite(target_true=None), "`requested_rewrite.target_true`: expected an object, got null"),
    (rewrite(target_new={"Str": "x"}), "Did you mean `Str`"),
    (changed(records.ROME, case_id=[1]), "`case_id`: expected a number or text, got a list of 1"),
    (changed(records.ROME, neighborhood_prompts={}), "`neighborhood_prompts`: expected a list"),
    (changed(records.ROME, paraphrase_prompts=[3]), r"`paraphrase_prompts\[0\]`: expected text"),
    (without(records.EASYEDIT, "subject"), "expected a field `subject`, got none"),
    (changed(records.EASYEDIT, ground_truth={"a": 1}), "`ground_truth`: expected text, got an obj"),
    (changed(records.KNOWEDIT, portability=[]), "`portability`: expected an object, got a list"),
    (
        changed(records.KNOWEDIT, portability={"Reasonin": []}),
        "`portability.Reasonin`; remove or rename it. Did you mean `Reasoning`",
    ),
    (
        changed(records.KNOWEDIT, locality={"Forgetfulness": [{"ground_truth": "x"}]}),
        r"`locality.Forgetfulness\[0\].prompt`, got none",
    ),
    (
        changed(records.KNOWEDIT, locality={"Forgetfulness": [{"prompt": ["a", "b"]}]}),
        "expected one text, got .*make each text a question of its own",
    ),
    (changed(records.OWN, subjct="x"), "unknown field `subjct`.*Did you mean `subject`"),
    ({"prompt": "a", "targt": "b"}, "unknown field `targt`.*Did you mean `target`"),
    # Names of other tools, also beside a list that other formats have.
    ({"prompt": "a", "answer": "b"}, "unknown field `answer`.* Here it is `target`"),
    (changed(records.OWN, rephrase="x"), "unknown field `rephrase`.*`rephrases`, a list"),
    (
        changed(records.OWN, locality=[{"prompt": "x", "answer": "y"}]),
        "`locality`.*a probe, .*neighborhood",
    ),
    (changed(records.OWN, portability=[{"prompt": "x"}]), "`portability`.*a probe, .*one_hop"),
    ({"target": "b"}, "expected a field `prompt`"),
    (changed(records.OWN, target=1998), "expected text, got the number 1998; put it in quotes"),
    (changed(records.OWN, prompt="{} is"), "expected the full text, got .*write the subject in"),
    (changed(records.OWN, subject="Weekly Meeting"), "write it 'weekly meeting'"),
    (changed(records.OWN, subject="picnic"), "write it as it is spelled in the prompt"),
    (changed(records.OWN, subject_start=1), "does not stand in the prompt"),
    (changed(records.OWN, subject_start="1"), "expected a position in the prompt.*leave it out"),
    (changed(records.OWN, rephrases="one"), r"a list of texts, got the text .one.; write it as \["),
    (changed(records.OWN, rephrases=[" "]), r"`rephrases\[0\]`: expected text, got empty text"),
    (changed(records.OWN, probes={"kind": 1}), "a list of objects, got an object with the fields"),
    (
        changed(records.OWN, prompt="half \ud800"),
        "half of a surrogate pair; save the file as UTF-8",
    ),
    (own_probe(kind="one-hop"), r"`probes\[0\].kind`: expected one of rewrite.*choose one"),
    (own_probe(answers=[]), r"`probes\[0\].answers`: .*give at least one accepted answer"),
    (own_probe(answers=["b", ""]), r"`probes\[0\].answers\[1\]`: expected text"),
    (own_probe(expect="same"), "expected one of target, unchanged, answer.*or leave it out"),
    (own_probe(path=[["a", "b"]]), r"expected a list of \[subject, relation, object\]"),
    (own_probe(path=3), "expected a list of triples, got the number 3"),
    (own_probe(answer="b"), r"`probes\[0\].answer`; remove or rename it. Did you mean `answers`"),
]


@pytest.mark.parametrize(("record", "message"), RECORDS, ids=[str(i) for i in range(len(RECORDS))])
def test_fields_that_are_wrong(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n" + json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_requests(path)
    assert str(caught.value).startswith(f"{path}, record 1 (line 2)")


def test_two_records_with_one_id(tmp_path: Path) -> None:
    path = records.write(tmp_path / "a.json", [records.ROME, records.EASYEDIT, records.ROME])
    with pytest.raises(DataError, match="record 3: the id 'counterfact-7' is that of record 1 alr"):
        read_requests(path)


def test_two_forms_in_one_file(tmp_path: Path) -> None:
    path = records.write(tmp_path / "a.json", [records.ZSRE, records.KNOWEDIT])
    with pytest.raises(DataError, match=r"record 2: .* got one of the form knowedit; keep"):
        read_requests(path)


def test_a_file_of_another_form_than_asked_for(tmp_path: Path) -> None:
    path = records.write(tmp_path / "a.json", [records.ZSRE])
    with pytest.raises(DataError, match="of the form counterfact, got one of the form zsre"):
        read_requests(path, "counterfact")
    with pytest.raises(DataError, match="`form` must be auto or one of mquake"):
        read_requests(path, "mend")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    records.write(tmp_path / "facts.json", [records.ZSRE])
    with pytest.raises(DataError, match=r"no such file; check the path. Did you mean .*facts.json"):
        read_requests(tmp_path / "fact.json")
    with pytest.raises(DataError, match=r"got a folder; give one of facts\.json"):
        read_requests(tmp_path)


def test_a_file_in_which_no_record_holds_an_edit(tmp_path: Path) -> None:
    path = records.write(tmp_path / "a.json", [changed(records.ZSRE, alt="")])
    with pytest.raises(DataError, match="none of its 1 records holds an edit; check the file"):
        read_requests(path)


VALUES: list[Any] = [
    None,
    True,
    0,
    1.5,
    "",
    " ",
    "x",
    "\x00",
    "é",
    [],
    [None],
    [[]],
    ["a"],
    {},
    {"a": 1},
]


def broken(value: Any, chance: random.Random) -> Any:
    """Replace, remove or double something somewhere inside a JSON value."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return without(value, name)
        return {**value, name: broken(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], broken(value[at], chance), *value[at + chance.randrange(2) :]]
    return chance.choice(VALUES)


@pytest.mark.parametrize(
    "record",
    [records.ZSRE_HOP, records.ROME_LOCALITY, records.EASYEDIT, records.KNOWEDIT, records.OWN],
)
def test_whatever_is_broken_is_a_data_error_or_a_request(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    chance = random.Random(0)
    path = tmp_path / "a.jsonl"
    refused = 0
    for _ in range(200):
        path.write_text(json.dumps(broken(record, chance)), encoding="utf-8")
        report = inspect(str(path))
        refused += bool(report.errors)
        assert len(report.errors) == 1 - report.requests
        assert all(error.startswith(str(path)) for error in report.errors)
    assert 50 < refused < 200


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="got a pipe or device"):
        read_values(tmp_path / "pipe.jsonl")


def test_a_nul_in_a_path() -> None:
    with pytest.raises(DataError, match="no path of a file"):
        read_values(Path("a\0b.json"))


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts.txt", "facts"])
@pytest.mark.parametrize(
    "text", ["prompt,target\nA b,c\n", "prompt;target;x\na;b;c\n", "p\tt\na\tb"]
)
def test_a_table_by_another_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"got a table of text \(CSV\) that begins 'p"):
        read_values(tmp_path / name)


def test_the_form_of_a_file_is_that_of_most_records(tmp_path: Path) -> None:
    odd = {"prompt": "a", "target": "b", "locality": [{"loc": "x", "loc_ans": "y"}]}
    path = records.write(tmp_path / "mixed.json", [odd, records.OWN, {**records.OWN, "id": "two"}])
    with pytest.raises(DataError, match=r"record 1.*unknown field `locality`"):
        read_requests(path)
    found = read_requests(path, collect_errors=True)
    assert (found.form, len(found.requests), len(found.errors)) == ("jsonl", 2, 1)


@pytest.mark.parametrize("locality", [[], [{"loc": "x", "loc_ans": "y"}]])
def test_own_fields_beside_a_list_called_locality_are_not_lost(
    tmp_path: Path, locality: list[Any]
) -> None:
    path = records.write(tmp_path / "own.json", [{**records.OWN, "locality": locality}])
    with pytest.raises(DataError, match="unknown field `locality`"):
        read_requests(path)
