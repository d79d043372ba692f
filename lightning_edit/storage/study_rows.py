"""Rows of a study on disk, so that an interrupted one goes on where it ended; torch-free."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.jsonl import RowFile, complete_lines


def require_same(found: Mapping[str, Any], asked: Mapping[str, Any], place: Path) -> None:
    """Refuse to go on with another study than the one on disk.

    Args:
        found: What the study on disk is.
        asked: What this one is.
        place: Where the study lies.

    Raises:
        ConfigError: If they differ; it names the parts that do.
    """
    other = sorted(name for name in asked if json.loads(json.dumps(asked[name])) != found.get(name))
    if other:
        raise ConfigError(
            f"{place} holds a study with another {', '.join(other)}; give the options that it was "
            "started with, or another folder with --run"
        )


class ResumableRows:
    """A JSONL file whose first line says what is studied; a line that a kill has cut is dropped.

    Args:
        path: The file.
        study: What must be the same for a study to be gone on with.

    Raises:
        ConfigError: If the file is of another study.
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
        """Keep rows; they are on disk when this returns.

        Args:
            rows: They are written together.
        """
        listed = list(rows)
        self._file.append(listed)
        self.rows += listed
