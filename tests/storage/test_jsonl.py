from pathlib import Path

import pytest

from lightning_edit.exceptions import DataError, LedgerError
from lightning_edit.storage.jsonl import (
    RowFile,
    complete_lines,
    iterate_rows,
    read_rows,
    write_rows,
)

#: Line ends of Unicode that a JSON string may hold as they are.
ODD = {"text": "one\u2028two\u0085three\x1cfour", "n": 1}


def test_only_the_line_feed_ends_a_record(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [ODD, {"n": 2}])
    assert read_rows(tmp_path / "rows.jsonl") == [ODD, {"n": 2}]
    file = RowFile(tmp_path / "appended.jsonl")
    file.append([ODD])
    file.append([{"n": 2}])
    assert list(file) == [ODD, {"n": 2}]


def test_a_line_that_a_kill_has_cut_is_dropped() -> None:
    assert complete_lines(b'{"n": 1}\n{"n": 2}\n{"n":') == [b'{"n": 1}', b'{"n": 2}']


def test_rows_are_read_up_to_the_length_that_a_checkpoint_names(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.append([{"n": 1}])
    size = file.size
    file.append([{"n": 2}])
    assert [row for _, row in iterate_rows(file.path, size)] == [{"n": 1}]
    file.cut(size)
    assert list(file) == [{"n": 1}]
    with pytest.raises(LedgerError, match="checkpoint was taken"):
        file.cut(size + 1)


@pytest.mark.parametrize("line", [b"[1]", b"{", b'{"text": "\xff"}'])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: .*write the file anew"):
        read_rows(path)
