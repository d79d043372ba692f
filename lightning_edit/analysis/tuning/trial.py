"""One trial of a search over settings: which settings, and how each case's edit scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_edit.analysis.sweep.layers import LayerTrial
from lightning_edit.analysis.sweep.measure import CaseScores
from lightning_edit.analysis.tuning.space import AUTO, Setting
from lightning_edit.report.sweep_plots import label

#: Facts after which a trial without any success is given up.
_FIRST = 3
#: Mark of a trial that was given up, in the place of why it failed.
GIVEN_UP = "given up"
#: What that says.
GIVEN_UP_BECAUSE = (
    f"it wrote none of {_FIRST} facts that the editor's own settings write, so it was not tried on "
    "the others"
)


def hopeless(outcomes: Sequence[CaseScores], own: Sequence[CaseScores]) -> bool:
    """Return whether a trial has written nothing of what can be written, so that the rest is left.

    Args:
        outcomes: Scores of the facts so far.
        own: Scores with the editor's own settings; without any that are held nothing is given up.
    """
    able = {one.case for one in own if one.values.get("reliability", 0.0) > 0}
    held = [one.values.get("reliability", 0.0) for one in outcomes]
    return sum(one.case in able for one in outcomes) >= _FIRST and not any(held)


@dataclass(frozen=True)
class SettingsTrial(LayerTrial):
    """Trial of one choice of settings.

    Args:
        settings: Values by name, without the layers; ``auto`` where the editor's rule decides.
        chosen: What the rules decided, by name; of a rule that decides for each edit, at the last.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Convert to plain containers for JSON."""
        return {"settings": dict(self.settings), AUTO: dict(self.chosen), **super().to_row()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SettingsTrial":
        """Restore a trial from the plain containers of :meth:`to_row`."""
        outcomes = [CaseScores.from_row(case) for case in row["cases"]]
        seconds = row["seconds_per_edit"]
        settings, chosen = row["settings"], row.get(AUTO, {})  # earlier versions kept no rules
        return cls(list(row["layers"]), outcomes, seconds, row["failed"], settings, chosen)

    @property
    def words(self) -> str:
        """The settings in one line, such as ``layers 3–5, lr auto (0.1)``."""
        parts = [f"layers {label(self.layers)}"] if self.layers else []
        for name, value in self.settings.items():
            decided = f" ({_words(self.chosen[name])})" if name in self.chosen else ""
            parts.append(f"{name} {_words(value)}{decided}")
        return ", ".join(parts)


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # one of each layer
        ends = dict.fromkeys(map(_words, (min(value), max(value)))) if value else ["none"]
        return "–".join(ends)
    return str(value) if isinstance(value, int) else f"{value:.3g}"
