"""One trial of a search over settings: which settings, and how each case's edit scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_edit.analysis.sweep.layers import LayerTrial
from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.analysis.tuning.space import Setting
from lightning_edit.report.sweep_plots import label


@dataclass(frozen=True)
class SettingsTrial(LayerTrial):
    """Trial of one choice of settings.

    Args:
        settings: Values by name, without the layers; ``auto`` where the editor's rule decides.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {"settings": dict(self.settings), **super().to_row()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SettingsTrial":
        """Restore a trial from the plain containers of :meth:`to_row`."""
        outcomes = [CaseScores.from_row(case) for case in row["cases"]]
        seconds = row["seconds_per_edit"]
        return cls(list(row["layers"]), outcomes, seconds, row["failed"], row["settings"])

    @property
    def words(self) -> str:
        """The settings in one line, such as ``layers 3–5, lr 0.1``."""
        parts = [f"layers {label(self.layers)}"] if self.layers else []
        values = (f"{name} {_words(value)}" for name, value in self.settings.items())
        return ", ".join([*parts, *values])


def _words(value: Setting) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
