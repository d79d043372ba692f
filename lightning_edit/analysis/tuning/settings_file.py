"""YAML file with the settings that a search found, as ``edit --config`` takes it."""

from collections.abc import Mapping
from typing import Any

import yaml

from lightning_edit.analysis.sweep.layers import RankedTrial
from lightning_edit.analysis.tuning.arguments import Argument, with_values
from lightning_edit.analysis.tuning.choices import LAYERS
from lightning_edit.analysis.tuning.trial import SettingsTrial
from lightning_edit.functional.visible import visible


def settings_yaml(
    configured: Mapping[str, Any],
    arguments: Mapping[str, Argument],
    found: RankedTrial,
    title: str,
    *,
    layers: str | None,
    own: bool = False,
) -> str:
    """Return settings as a configuration for ``edit``, with what they were measured on.

    Args:
        configured: The editor as configured: class path and arguments, of plain values.
        arguments: Its arguments and those of its hosts, by the names that settings have.
        found: The trial that has them.
        title: What was tried on what, in one line.
        layers: Argument that names the layers, where they were searched and belong in the file:
            ``layers``, or ``layer`` of an editor of one.
        own: Whether these are the editor's own settings.
    """
    trial = found.tried
    assert isinstance(trial, SettingsTrial)
    means = ", ".join(f"{aspect} {value:.3f}" for aspect, value in found.means.items())
    lines = [
        f"# {visible(title)}.",
        f"# {means}; harmonic mean {found.score:.3f} ± {found.spread:.3f}.",
        "# The editor's own settings: the best trial is not a standard error better."
        if own
        else "# Chosen on these facts: report results on others.",
    ]
    chosen: dict[str, Any] = {}
    if layers is not None:
        chosen[layers] = list(trial.layers) if layers == LAYERS else trial.layers[0]
    editor = with_values(configured, arguments, chosen | dict(trial.settings))
    text = yaml.safe_dump({"model": editor}, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, text])
