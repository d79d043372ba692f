"""What to turn where an edit did not write its answer: settings that make an editor stronger."""

from typing import Any

from torch import nn

#: Settings that make an editor write more if they are raised, and those if they are lowered.
RAISE = (
    "eta",
    "lr",
    "steps",
    "clamp",
    "norm_constraint",
    "scale",
    "add",
    "alpha",
    "kept",
    "null_threshold",
)
LOWER = ("moment_weight", "norm_weight")


def to_write_more(editor: Any) -> str:
    """Return what to turn where an editor did not write its answers.

    Args:
        editor: The editor, with the values that its ``auto`` settings had.
    """
    name = type(editor).__name__
    layers = [editor]  # a wrapper's own settings are turned before its host's
    while isinstance(host := getattr(editor, "editor", None), nn.Module) and hasattr(
        host, "no_strength"
    ):
        editor = host
        layers.append(editor)
    if editor.needs_fit:
        return f"{name} writes what it was trained to: train it longer, or for this kind of edits."
    texts = []
    for verb, names in (("raise", RAISE), ("lower", LOWER)):
        values = ((one, key, _value(one, key)) for one in layers for key in names)
        told = [
            f"{key} ({value:g})"
            for one, key, value in values
            # A wrapper's share of the host's update is at most all of it.
            if _is_number(value) and (one is editor or value < 1) and key not in one.no_strength
        ]
        if told:
            texts.append(f"{verb} {', '.join(told)}")
    if not texts:
        return f"docs/methods.md says what {name} can write."
    return (
        f"To write more with {name}: {'; '.join(texts)}; or let `lightning-edit tune {name}` find "
        "settings for this model."
    )


def _value(editor: Any, name: str) -> Any:
    """Return a setting's value; of an ``auto`` setting the one that it has on the bound model."""
    chosen = editor.chosen.get(name)
    given = min(chosen, default=None) if isinstance(chosen, list) else chosen
    return getattr(editor, name, None) if given is None else given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
