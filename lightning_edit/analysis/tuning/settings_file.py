"""YAML file with the best settings of a search, as ``edit --config`` takes it."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lightning_edit.analysis.sweep.layers import RankedTrial
from lightning_edit.analysis.tuning.choices import LAYERS
from lightning_edit.analysis.tuning.trial import SettingsTrial
from lightning_edit.functional.visible import visible


def settings_yaml(
    configured: Mapping[str, Any], depth: int, best: RankedTrial, title: str, *, layers: bool
) -> str:
    """Return the best settings as a configuration for ``edit``, with what they were measured on.

    Args:
        configured: The editor as configured: class path and arguments.
        depth: Number of wrappers around the editor that was searched.
        best: The best trial.
        title: What was tried on what, in one line.
        layers: Whether layers were searched and belong in the file.
    """
    trial = best.tried
    assert isinstance(trial, SettingsTrial)
    means = ", ".join(f"{aspect} {value:.3f}" for aspect, value in best.means.items())
    lines = [
        f"# {visible(title)}.",
        f"# {means}; harmonic mean {best.score:.3f} ± {best.spread:.3f}.",
        "# Chosen on these facts: report results on others.",
    ]
    arguments: dict[str, Any] = {LAYERS: list(trial.layers)} if layers else {}
    arguments |= trial.settings
    editor: dict[str, Any] = json.loads(json.dumps(configured, default=str))
    inner = editor
    for _ in range(depth):
        inner = inner["init_args"]["editor"]
    inner["init_args"] = inner.get("init_args", {}) | arguments
    text = yaml.safe_dump({"model": editor}, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, text])
