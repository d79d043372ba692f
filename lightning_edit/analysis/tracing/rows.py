"""Traced facts on disk, one line each, so that an interrupted run goes on where it ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_edit.storage.study_rows import ResumableRows


class TraceRows(ResumableRows):
    """The file ``trace.jsonl``: what is traced in its first line, then one line a fact.

    Args:
        folder: The run's folder.
        record: What must be the same for a run to be gone on with.

    Raises:
        ConfigError: If the folder holds another run.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        super().__init__(folder / "trace.jsonl", record)

    @property
    def known(self) -> int:
        """Facts that the model knows, so far."""
        return self.known_before(len(self.rows))

    def known_before(self, number: int) -> int:
        """Return how many of the first facts the model knows.

        Args:
            number: How many first facts.
        """
        return sum("effects" in row for row in self.rows[:number])

    def traced(self, limit: int) -> list[dict[str, Any]]:
        """Return the first facts that the model knows.

        Args:
            limit: At most so many.
        """
        return [row for row in self.rows if "effects" in row][:limit]

    def counts(self, limit: int) -> dict[str, int]:
        """Return how many facts were asked, known, and impossible to tokenise.

        Args:
            limit: At most so many known ones.
        """
        known = asked = impossible = 0
        for row in self.rows:
            if known >= limit:
                break
            asked += 1
            known += "effects" in row
            impossible += "impossible" in row
        return {"asked": asked, "known": known, "impossible": impossible}
