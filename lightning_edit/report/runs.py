"""Finished runs for a report: read from run folders and labelled uniquely. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lightning_edit.storage.results import read_results


@dataclass(frozen=True)
class Run:
    """A finished run with its label in charts and tables.

    Args:
        folder: The run folder.
        label: Its unique name in legends and tables.
        results: The content of its ``results.json``.
    """

    folder: Path
    label: str
    results: Mapping[str, Any]

    @property
    def editor(self) -> str:
        """The editor's class name."""
        return str(self.results["editor"]["class"])

    @property
    def model(self) -> str:
        """The language model's short name."""
        name: str = self.results["language_model"]["name"]
        return name.rstrip("/").rpartition("/")[2]

    @property
    def edits(self) -> int:
        """Number of edits in the run."""
        return int(self.results["timing"].get("edits", 0))

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """Evaluation points after at least one edit, in order of edits."""
        return [point for point in self.results["points"] if point["after"] > 0]

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last evaluation point, if there is one."""
        return self.points[-1] if self.points else None


RunsLike: TypeAlias = Run | Path | str | Sequence[Run | Path | str]
"""A run, the folder of one, or several of them."""


def as_runs(runs: RunsLike) -> list[Run]:
    """Read runs from disk and give each a unique label.

    Args:
        runs: One or several of: a run, a run folder, a ``results.json``.

    Returns:
        Runs in the given order.

    Raises:
        DataError: If a folder contains no finished run.
    """
    listed = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    read = []
    for entry in listed:
        if isinstance(entry, Run):
            read.append(entry)
            continue
        path = Path(entry)
        folder = path if path.is_dir() else path.parent
        read.append(Run(folder, "", read_results(path)))
    return _with_labels(read)


def _with_labels(runs: Sequence[Run]) -> list[Run]:
    """Label runs by the first scheme that is unique: editor, protocol, edits, folder, number."""
    candidates = [
        [run.editor for run in runs],
        [f"{run.editor}, {run.results['protocol']}" for run in runs],
        [f"{run.editor}, {run.results['protocol']} {run.edits}" for run in runs],
        [f"{run.editor} ({run.folder.resolve().name})" for run in runs],
        [f"{run.editor} ({number})" for number, run in enumerate(runs, 1)],
    ]
    labels = next(labels for labels in candidates if len(set(labels)) == len(labels))
    return [
        Run(run.folder, run.label or label, run.results)
        for run, label in zip(runs, labels, strict=True)
    ]


def comparable(runs: Sequence[Run]) -> list[str]:
    """List the settings other than the editor that differ between runs: model, data, protocol.

    Returns:
        An empty list if the metrics of the runs can be compared.
    """
    keys = {
        "language model": [run.results["language_model"]["hash"] for run in runs],
        "requests": [run.results["data"]["hash"] for run in runs],
        "protocol": [run.results["protocol"] for run in runs],
    }
    return [name for name, values in keys.items() if len(set(values)) > 1]
