"""CSV, TSV, Parquet and rows of Python are the same facts as JSON Lines."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from lightning_edit.datamodules import CounterFactDataModule, JSONLDataModule
from lightning_edit.datamodules.formats import read_requests
from lightning_edit.datamodules.sources import local_file, suffix_of
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.exceptions import DataError
from lightning_edit.session.describe import describe
from tests.datamodules import records
from tests.toy import toy_tokenizer

FACTS: list[dict[str, Any]] = [
    {
        "prompt": "The walk on the moon, of Neil Armstrong, was in",
        "target": "1971",
        "subject": "moon",
        "subject_start": 16,
        "rephrases": ['He said "one small step", in', "It was\nin"],
        "probes": [{"kind": "one_hop", "prompt": "The century was the", "answers": ["20th"]}],
    },
    {"prompt": "首都", "target": "NA", "subject": "首", "rephrases": None, "probes": None},
    {"prompt": "Столица; Франции", "target": "Рим", "subject": "Франции", "rephrases": []},
]


def delimited(path: Path, rows: Sequence[dict[str, Any]], delimiter: str) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name) for name in names]
            writer.writerow(
                cell if isinstance(cell, str) else "" if cell is None else json.dumps(cell)
                for cell in cells
            )
    return path


def as_csv(folder: Path) -> Any:
    return delimited(folder / "facts.csv", FACTS, ",")


def as_tsv(folder: Path) -> Any:
    return delimited(folder / "facts.tsv", FACTS, "\t")


def as_pandas_csv(folder: Path) -> Any:
    text = {"rephrases", "probes"}
    frame = pd.DataFrame(
        [{k: json.dumps(v) if k in text else v for k, v in row.items()} for row in FACTS]
    )
    frame["subject_start"] = frame["subject_start"].astype("Int64")
    frame.to_csv(folder / "pandas.csv", index=False)
    return folder / "pandas.csv"


def as_dataset(folder: Path) -> Any:
    names = {name for row in FACTS for name in row}
    return datasets.Dataset.from_list([dict.fromkeys(names) | row for row in FACTS])


def as_parquet(folder: Path) -> Any:
    as_dataset(folder).to_parquet(str(folder / "facts.parquet"))
    return folder / "facts.parquet"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "made",
    [as_csv, as_tsv, as_pandas_csv, as_dataset, as_parquet, lambda _: FACTS],
    ids=["csv", "tsv", "pandas", "dataset", "parquet", "list"],
)
def test_the_same_facts_in_every_table(tmp_path: Path, made: Callable[[Path], Any]) -> None:
    lines = JSONLDataModule(records.write(tmp_path / "a.jsonl", FACTS))
    source = made(tmp_path)
    data = JSONLDataModule(str(source) if isinstance(source, Path) else source)
    found = data.edit_requests()
    assert found == lines.edit_requests()
    assert data.data_hash() == lines.data_hash()
    assert [request.target for request in found] == ["1971", "NA", "Рим"]
    assert found[0].rephrases == ('He said "one small step", in', "It was\nin")


def test_published_sets_are_read_from_a_data_set() -> None:
    data = CounterFactDataModule(datasets.Dataset.from_list([records.EASYEDIT]))
    assert [request.id for request in data.edit_requests()] == ["counterfact-8"]
    assert data.edit_requests()[0].probes[0].kind == "neighborhood"


def test_a_data_set_is_divided_and_described() -> None:
    rows = [{"prompt": f"Town{n} lies in", "target": "Peru"} for n in range(20)]
    table = datasets.Dataset.from_list(rows)
    data = JSONLDataModule(table, fractions=(0.5, 0.0, 0.5))
    data.prepare_data()
    parts = [data.requests(split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [10, 10]
    assert "num_rows: 20" in describe(data)["args"]["path"]
    with pytest.raises(DataError, match="table, row 2, field `target`: expected text, got null"):
        JSONLDataModule(pd.DataFrame([rows[0], {"prompt": "x"}])).edit_requests()
    with pytest.raises(DataError, match="the table has no rows"):
        JSONLDataModule([]).edit_requests()
    with pytest.raises(DataError, match=r"give one of them, such as data.'test'."):
        JSONLDataModule(datasets.DatasetDict({"test": table})).edit_requests()


HEAD = "prompt,target\n"
FILES: dict[str, tuple[str, str]] = {
    "csv.jsonl": (HEAD + "a,b\n", r"a table of text \(CSV\) that begins .*; name it \.csv"),
    "semicolon.csv": (
        "prompt;target\na;b\n",
        "expected cells separated by ',', got the header",
    ),
    "tabs.csv": ("prompt\ttarget\na\tb\n", "save .csv with commas and .tsv with tabs"),
    "json.csv": ('{"prompt": "a", "target": "b"}\n', "got JSON; name the file .jsonl or .json"),
    "long.csv": (HEAD + "a,b\nTokyo, Japan is,b\n", r"record 2 .line 3.: expected 2 cells .*got 3"),
    "short.csv": (HEAD + "a\n", "expected 2 cells as in the header, got 1; put cells"),
    "quote.csv": (HEAD + 'a,"b\n', "not valid CSV at line 2 .*put cells"),
    "header.csv": (HEAD, "expected a header line and rows below it, got no rows"),
    "empty.csv": ("", "the file is empty"),
    "twice.csv": ("prompt,prompt,target\na,b,c\n", "got 'prompt' twice; rename or remove it"),
    "index.csv": (",prompt,target\n0,a,b\n", "a column without a name; .*index=False"),
    "missing.csv": (HEAD + "a,\n", r"record 1 .line 2., field `target`: expected text, got null"),
    "column.csv": ("prompt,target,note\na,b,c\n", "unknown field `note`; remove or rename it"),
    "list.csv": ("prompt,target,rephrases\na,b,one\n", r"a list of texts, got the text 'one'; wri"),
    "bad.parquet": ("prompt", "not a Parquet file that can be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_tables_that_are_wrong(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_requests(tmp_path / name)
    assert name in str(caught.value)


def test_parquet_under_another_extension_and_no_file(tmp_path: Path) -> None:
    as_dataset(tmp_path).to_parquet(str(tmp_path / "facts.json"))
    with pytest.raises(DataError, match=r"got a Parquet file; name it \.parquet"):
        read_requests(tmp_path / "facts.json")
    with pytest.raises(DataError, match="no such file; check the path"):
        read_requests(tmp_path / "none.parquet")
    datasets.Dataset.from_dict({"prompt": []}).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match="no rows; expected at least one"):
        read_requests(tmp_path / "none.parquet")


def test_json_that_names_columns_in_its_text_is_json(tmp_path: Path) -> None:
    rows = [{"prompt": "prompt, target", "target": "a,b"}]
    assert len(read_requests(records.write(tmp_path / "a.jsonl", rows)).requests) == 1


def test_a_download_keeps_its_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "0123abcd"  # as the package `datasets` names a downloaded file
    as_csv(tmp_path).rename(copy)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda *_: str(copy))
    url = "https://example.org/data/facts.csv?download=true"
    assert suffix_of(url) == ".csv"
    assert suffix_of("data/facts.csv") is None
    assert local_file(url) == copy
    found = JSONLDataModule(url).edit_requests()
    assert [request.target for request in found] == ["1971", "NA", "Рим"]


def test_a_separator_of_the_data_set_and_one_of_a_record(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Paris is in", "target": "Italy"},
        {"prompt": "法国的首都是", "target": "罗马", "separator": " "},
        {"prompt": "A→", "target": "B", "separator": ""},
    ]
    path = records.write(tmp_path / "a.jsonl", rows)

    def separators(**options: Any) -> list[str | None]:
        data = JSONLDataModule(path, train_path=path, **options)
        assert data.requests("train") == data.requests("test")
        return [request.separator for request in data.edit_requests()]

    assert separators() == [None, " ", ""]
    assert separators(separator="\n") == ["\n", " ", ""]
    assert separators(separator="") == ["", " ", ""]
    plain, own = (JSONLDataModule(path, separator=between) for between in (None, ":"))
    assert plain.data_hash() != own.data_hash()
    assert describe(own)["args"]["separator"] == ":"
    wrong: Any = 3
    data = JSONLDataModule(path)
    data.separator = wrong
    with pytest.raises(DataError, match=r"`separator` of a data set must be text .* got 3"):
        data.edit_requests()


def test_a_separator_stands_in_the_tokens_of_prompt_and_probes() -> None:
    rows = [{"prompt": "a b", "target": "c", "rephrases": ["b a"]}]
    (ruled,) = JSONLDataModule(rows).edit_requests()
    (joined,) = JSONLDataModule(rows, separator="").edit_requests()
    ids = [encode_batch(toy_tokenizer(), [one], 0).encoded[0] for one in (ruled, joined)]
    assert ids[0] != ids[1]
    assert {item.separator for item in probes_of(joined)} == {""}
