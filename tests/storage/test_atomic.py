from pathlib import Path

import pytest

from lightning_edit.storage.atomic import atomic_path, write_atomic


@pytest.mark.parametrize("several_writers", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, several_writers: bool
) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"old")

    def fail() -> None:
        with atomic_path(path, several_writers) as part:
            part.write_bytes(b"ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"old"
    with atomic_path(path, several_writers) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
