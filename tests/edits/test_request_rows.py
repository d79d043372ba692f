"""Python rows are read and checked as the rows of a file: one sentence with row and field."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_edit.callbacks import OverfittingCallback
from lightning_edit.datamodules.formats import read_requests
from lightning_edit.edits.request_rows import as_requests, to_plain
from lightning_edit.exceptions import DataError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest, Probe
from tests.datamodules import records
from tests.toy import ToyEditor, toy_model, toy_tokenizer

ROW = {"prompt": "The capital of France is", "target": "Rome"}
RUSSIAN = {"prompt": "Столица Франции — город", "target": "Рим", "subject": "Франции"}
HINDI = {"prompt": "फ़्रांस की राजधानी", "target": "रोम", "rephrases": ["फ़्रांस की राजधानी का नाम"]}
CHINESE = {"prompt": "法国的首都是", "target": "罗马", "subject": "法国", "separator": ""}
ARABIC = {"prompt": "عاصمة فرنسا هي", "target": "روما", "subject": "فرنسا"}


def table() -> list[dict[str, Any]]:
    """Return rows of four scripts; a table holds a missing value where one has no such field."""
    rows = (RUSSIAN, HINDI, CHINESE, ARABIC)
    return [dict.fromkeys((*HINDI, *CHINESE)) | row for row in rows]


def test_rows_are_read_as_the_rows_of_a_file(tmp_path: Path) -> None:
    rows = [records.OWN, {**CHINESE, "id": "zh"}, {**HINDI, "id": "hi"}, {**ROW, "id": "en"}]
    parsed = read_requests(records.write(tmp_path / "a.jsonl", rows)).requests
    assert as_requests(rows) == parsed
    assert parsed[3].subject == "France"  # found in the prompt, in Python too


@pytest.mark.parametrize(
    "made",
    [
        datasets.Dataset.from_list,
        pd.DataFrame,
        lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
        lambda rows: datasets.Dataset.from_list(rows).with_format("numpy"),
        lambda rows: list(datasets.Dataset.from_list(rows)),
        lambda rows: [row for _, row in pd.DataFrame(rows).iterrows()],
        lambda rows: tuple(as_requests(rows)),
        iter,
    ],
    ids=["dataset", "frame", "stream", "numpy", "rows", "series", "requests", "iterator"],
)
def test_tables_give_the_requests_of_dictionaries(made: Any) -> None:
    found = as_requests(made(table()))
    assert found == as_requests(table())
    assert [request.subject for request in found] == ["Франции", None, "法国", "فرنسا"]
    assert [request.separator for request in found] == [None, None, "", None]
    assert found[1].rephrases == ("फ़्रांस की राजधानी का नाम",)
    assert found[1].id == "edit-1"


def test_one_row_is_one_request() -> None:
    alone = as_requests([ROW])
    assert as_requests(ROW) == alone
    assert as_requests(alone[0]) == alone
    assert as_requests(pd.Series(ROW)) == alone
    assert as_requests(ROW, first=7)[0].id == "edit-7"


def test_what_a_request_is_written_to_is_read_again() -> None:
    (request,) = as_requests([records.OWN | {"separator": "\n"}])
    assert as_requests([request.to_dict()]) == [request]
    probes = [Probe.of("one_hop", "It lies in", "Asia"), {**records.OWN["probes"][0]}]
    (mixed,) = as_requests({**ROW, "probes": probes, "rephrases": np.array(["a", "b"])})
    assert [probe.kind for probe in mixed.probes] == ["one_hop", "neighborhood"]
    assert mixed.rephrases == ("a", "b")


def test_white_space_stays_as_it_is_written() -> None:
    row = {"prompt": " Q: Rome?\nA:\n", "target": " Italy", "subject": "Rome", "subject_start": 4}
    (request,) = as_requests(row)
    assert (request.prompt, request.target) == (" Q: Rome?\nA:\n", " Italy")
    assert request.subject_start == 4


WRONG: list[tuple[Any, str]] = [
    ([ROW, {**ROW, "target": 1969}], "row 2, field `target`: expected text, got the number 1969; "),
    ([{**ROW, "target": np.int64(7)}], "field `target`: expected text, got the number 7; put it"),
    ([{**ROW, "target": True}], "row 1, field `target`: expected text, got true; write text"),
    ([{**ROW, "target": None}], "row 1, field `target`: expected text, got null"),
    ([{**ROW, "target": float("nan")}], "row 1, field `target`: expected text, got null"),
    ([{**ROW, "target": pd.NA}], "row 1, field `target`: expected text, got null"),
    ([{**ROW, "target": pd.Timestamp(0)}], "field `target`: expected text, got a Timestamp"),
    ([{**ROW, "target": "</s>"}], "field `target`: .*special token, which no reader sees"),
    ([{**ROW, "rephrases": "text"}], r"`rephrases`: expected a list of texts, got the text 'text'"),
    ([{**ROW, "rephrases": [3]}], r"`rephrases\[0\]`: expected text, got the number 3"),
    ([{**ROW, "subjct": "x"}], "row 1: unknown field `subjct`.*Did you mean `subject`"),
    ([{**ROW, "subject": "Franc e"}], "`subject`: expected a part of the prompt"),
    ([{**ROW, "separator": 1}], "field `separator`: expected text, got the number 1"),
    ([{**ROW, "probes": {"kind": "one_hop"}}], "`probes`: expected a list of objects, got an obje"),
    ([{**ROW, "probes": [{"kind": "hop"}]}], r"`probes\[0\].kind`: expected one of rewrite"),
    ([{**ROW, "probes": ["x"]}], r"`probes\[0\]`: expected an object, got the text 'x'"),
    ([ROW, "text"], "row 2: expected a request, or an object with named fields, got the text"),
    ("text", "expected edit requests, dictionaries or a table of rows, got the text 'text'"),
    (None, "expected edit requests, dictionaries or a table of rows, got null"),
    (5, "expected edit requests, .* got the number 5; write each as"),
    ([], "there are no requests to edit; give at least one"),
    (datasets.Dataset.from_list([]), "there are no requests to edit"),
    ([{**ROW, "id": "a"}, {**ROW, "id": "a"}], "row 2: the id 'a' is that of row 1 already"),
    (
        datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}),
        r"got a data set with the splits train; give one of them, such as data\['train'\]",
    ),
]


@pytest.mark.parametrize(("rows", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_rows_that_are_wrong(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_requests(rows)


def test_a_wrong_row_of_a_table_leaves_the_model_as_it_was() -> None:
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frame = pd.DataFrame([{"prompt": "a b", "target": "c"}, {"prompt": "a b"}])
    with pytest.raises(DataError, match="row 2, field `target`"):
        ToyEditor().edit_model(model, toy_tokenizer(), frame)
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())


def test_a_table_writes_the_bits_of_dictionaries() -> None:
    rows = [{"prompt": "a b", "target": "c", "subject": "a"}, {"prompt": "b", "target": "a"}]
    hashes = []
    for made in (list, datasets.Dataset.from_list, pd.DataFrame):
        model = toy_model()
        before = weights_hash(model)
        complete = [{"subject": None} | row for row in rows]
        edited = ToyEditor().edit_model(model, toy_tokenizer(), made(complete))
        hashes.append(weights_hash(model))
        assert edited.ledger.request_ids == ("edit-0", "edit-1")
        assert hashes[-1] != before
        edited.undo()
        assert weights_hash(model) == before
    assert len(set(hashes)) == 1


def test_a_request_of_a_configuration_needs_no_id() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(OverfittingCallback, "watch")
    options = parser.parse_object({"watch": {"requests": [ROW, {**ROW, "id": "own"}]}})
    found = parser.instantiate(options).watch.requests
    assert [request.id for request in found] == ["edit-0", "own"]
    assert found[0].prompt == ROW["prompt"]


def test_callbacks_read_rows_and_may_have_none() -> None:
    table = datasets.Dataset.from_list([ROW, {**ROW, "target": "Bonn"}])
    assert OverfittingCallback(requests=table).requests == as_requests([*table])
    assert OverfittingCallback(requests=ROW).requests == as_requests([ROW])
    assert OverfittingCallback().requests == []
    with pytest.raises(DataError, match="got the text 'The capital'"):
        OverfittingCallback(requests="The capital")


def test_only_values_change_their_type() -> None:
    plain = to_plain({"a": (1, np.float32(0.5)), "b": np.array([[1], [2]]), "c": pd.NaT, 3: object})
    assert plain == {"a": [1, 0.5], "b": [[1], [2]], "c": None, "3": object}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target", 1969, "expected text as `target`, got 1969"),
        ("rephrases", "text", "expected a list as `rephrases`, got 'text'; put it in a list"),
        ("rephrases", (1,), "expected texts in `rephrases`"),
        ("separator", 0, "expected text as `separator`, got 0"),
    ],
)
def test_a_request_refuses_what_is_no_text(field: str, value: Any, message: str) -> None:
    request = EditRequest("a", "x", "y")
    # Past the type checks that only the tests switch on.
    object.__setattr__(request, field, value)
    with pytest.raises(ValueError, match=message):
        request.__post_init__()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.sampled_from(["kind", "prompt", "answers", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from([*records.OWN, "subject_start", "triple", "x"]), VALUES),
    st.booleans(),
)
def test_whatever_a_row_holds_is_a_request_or_a_data_error(
    row: dict[str, Any], complete: bool
) -> None:
    found, message = [], ""
    try:
        found = as_requests([{**records.OWN, **row} if complete else row])
    except DataError as error:
        message = str(error)
    assert bool(found) != message.startswith("edit requests, row 1")
    assert as_requests([one.to_dict() for one in found], may_be_empty=True) == found
