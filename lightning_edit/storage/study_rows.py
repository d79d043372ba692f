"""Resumable JSONL rows of a study (sweep, trade-off, tracing). Nothing here imports torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.jsonl import RowFile, complete_lines


def require_same(stored: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Check that a study on disk has the same options, so that it can be resumed.

    Args:
        stored: Options of the study on disk.
        current: Options of this study.
        path: Path of the study on disk, for the error message.

    Raises:
        ConfigError: If they differ; it names the options that do.
    """
    other = sorted(
        name for name in current if json.loads(json.dumps(current[name])) != stored.get(name)
    )
    if other:
        raise ConfigError(
            f"{path} contains a study with another {', '.join(other)}; give the options that it "
            "was started with, or another folder with --run"
        )


class ResumableRows:
    """Resumable JSONL file: the study's options, then its rows; an incomplete line is dropped.

    Args:
        path: The file.
        study: Options that must match to resume the study.

    Raises:
        ConfigError: If the file belongs to another study.
    """

    def __init__(self, path: Path, study: Mapping[str, Any]) -> None:
        self._file = RowFile(path)
        lines = complete_lines(path.read_bytes()) if path.exists() else []
        whole = sum(len(line) + 1 for line in lines)
        self._file.cut(whole)
        found = list(self._file)
        if found:
            require_same(found[0], study, path)
        else:
            self._file.append([study])
        self.rows: list[dict[str, Any]] = found[1:]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows to the file and fsync it.

        Args:
            rows: Rows, written in one operation.
        """
        listed = list(rows)
        self._file.append(listed)
        self.rows += listed
