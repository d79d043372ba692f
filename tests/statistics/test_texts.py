import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.exceptions import DataError
from lightning_edit.statistics.texts import texts_of


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": 3}\n', "line 1: expected an object with a text"),
        ("a.jsonl", '{"text": "x"}\n{\n', "line 2: not JSON"),
        ("a.txt", None, "No such file"),
    ],
)
def test_bad_text_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        list(texts_of(str(path)))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"expected a file with one document a line.*got \.json"):
        texts_of(str(path))
    with pytest.raises(DataError, match="no such file or folder"):
        texts_of("./nowhere")


def test_a_field_of_records_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": " one "}\n\n{"body": "two"}\n')
    texts = texts_of(str(path), field="body")
    assert list(texts) == ["one", "two"]
    assert texts.count() == 2


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = texts_of(str(path)).identity
    assert texts_of(str(path)).identity == before
    path.write_text("one more")
    assert texts_of(str(path)).identity != before


def test_a_folder_of_data_files_is_streamed_by_datasets(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "  "}, {"text": "two"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text('{"text": "three"}\n')
    assert list(texts_of(str(tmp_path))) == ["one", "two"]
    assert list(texts_of(str(tmp_path), split="test")) == ["three"]
    with pytest.raises(DataError, match=r"row 1: expected a text in column `body`.*--text_field"):
        list(texts_of(str(tmp_path), field="body"))
    with pytest.raises(DataError, match=r"cannot be read.*--text_split"):
        list(texts_of(str(tmp_path), split="dev"))


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"text": ["one", "two"]})
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "splits"))
    for name in ("one", "splits"):
        texts = texts_of(str(tmp_path / name))
        assert list(texts) == ["one", "two"]
        assert texts.count() == 2


def test_a_name_is_given_to_datasets_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"page": ["one"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    texts = texts_of("wikitext", "wikitext-103-raw-v1", "validation", "page")
    assert list(texts) == ["one"]
    assert asked == [("wikitext", "wikitext-103-raw-v1", "validation", True)]
    assert "wikitext-103-raw-v1" in texts.identity


def test_without_the_network_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    import datasets

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub.")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"cannot be read \(Couldn't reach the hub\); check --text"):
        list(texts_of("owner/name"))
