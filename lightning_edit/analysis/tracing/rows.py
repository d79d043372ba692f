"""Resumable JSONL file of traced facts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_edit.storage.study_rows import ResumableRows


class TraceRows(ResumableRows):
    """Resumable file ``trace.jsonl``: the options in its first line, then one line per fact.

    Args:
        folder: The run folder.
        record: Options that must match to resume the run.

    Raises:
        ConfigError: If the folder contains another run.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        super().__init__(folder / "trace.jsonl", record)

    @property
    def known(self) -> int:
        """Number of facts so far that the model knows."""
        return self.known_before(len(self.rows))

    def known_before(self, number: int) -> int:
        """Count the facts that the model knows among the first ones.

        Args:
            number: Number of facts from the start of the file.
        """
        return sum("effects" in row for row in self.rows[:number])

    def traced(self, limit: int) -> list[dict[str, Any]]:
        """Return the rows of the first facts that the model knows.

        Args:
            limit: Maximum number of rows.
        """
        return [row for row in self.rows if "effects" in row][:limit]

    def counts(self, limit: int) -> dict[str, int]:
        """Count the facts that were asked, known, and impossible to tokenise.

        Args:
            limit: Stop counting at this number of known facts.
        """
        known = asked = impossible = 0
        for row in self.rows:
            if known >= limit:
                break
            asked += 1
            known += "effects" in row
            impossible += "impossible" in row
        return {"asked": asked, "known": known, "impossible": impossible}
