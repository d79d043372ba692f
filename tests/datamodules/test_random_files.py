"""Files of any content are read, or end in the library's own error."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.storage.jsonl import complete_lines, read_rows, write_rows
from lightning_edit.storage.yaml_files import read_yaml

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["prompt", "target", "subject", "target_new", "requested_rewrite", "probes", "rephrases", "id",
     "src", "alt", "edit", "requests", "text", "case"]
)  # fmt: skip
RECORDS = st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), max_size=3)


def attempt(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"file{suffix}"
        path.write_bytes(content)
        with suppress(DataError):
            assert read_requests(str(path)).requests


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([".json", ".jsonl", ""]))
def test_bytes(content: bytes, suffix: str) -> None:
    attempt(content, suffix)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(RECORDS, st.sampled_from([".json", ".jsonl"]))
def test_records(records: list[dict[str, object]], suffix: str) -> None:
    attempt(json.dumps(records).encode(), suffix)
    attempt("\n".join(map(json.dumps, records)).encode(), suffix)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=120))
def test_options(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "c.yaml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        with suppress(ConfigError):
            assert isinstance(read_yaml(path), dict)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5))
def test_rows_are_read_as_written(rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        try:
            write_rows(path, rows)
        except UnicodeEncodeError:
            pytest.fail("a row could not be written")
        assert read_rows(path) == rows
        assert len(complete_lines(path.read_bytes())) == len(rows)
