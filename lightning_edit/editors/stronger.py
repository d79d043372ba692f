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
        values = ((one, key, number_of(one, key)) for one in layers for key in names)
        told = [
            f"{key} ({value:g})"
            for one, key, value in values
            # A wrapper's share of the host's update is at most all of it.
            if value is not None and (one is editor or value < 1)
        ]
        if told:
            texts.append(f"{verb} {', '.join(told)}")
    if getattr(editor, "objective", None) == "prompt_last":
        texts.append('where answers have several tokens, give objective="target_new" (FTM)')
    if not texts:
        return f"docs/methods.md says what {name} can write."
    return (
        f"To write more with {name}: {'; '.join(texts)}; or let `lightning-edit tune {name}` find "
        "settings for this model."
    )


def number_of(editor: Any, name: str) -> float | None:
    """Return the value of a setting that makes an editor stronger or weaker.

    Args:
        editor: The editor; of an ``auto`` setting it knows the value on the bound model.
        name: Name of the setting.

    Returns:
        The number; ``None`` if the editor has no such setting, or has it for something else.
    """
    chosen = editor.chosen.get(name)
    given = min(chosen, default=None) if isinstance(chosen, list) else chosen
    value = getattr(editor, name, None) if given is None else given
    if not isinstance(value, int | float) or isinstance(value, bool) or name in editor.no_strength:
        return None
    return float(value)
