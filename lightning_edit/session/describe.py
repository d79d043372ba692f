"""Configuration of an editor or data module: its class and arguments, as plain values."""

import inspect
from typing import Any

from lightning_edit.editors.arguments import kept_values
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest


def describe(thing: object) -> dict[str, Any]:
    """Return an object's class name and those ``__init__`` arguments that it keeps as attributes.

    Arguments of all base classes are included; values come from attributes, or from fields of
    dataclasses that are attributes. Nested editors are described too.

    Args:
        thing: An editor or a data module.

    Returns:
        ``class`` and ``args``; of an editor whose ``auto`` settings have found their values on
        the bound model also ``auto``, these values.
    """
    kept = kept_values(thing)
    names = [
        name
        for cls in type(thing).__mro__
        if cls.__module__.partition(".")[0] not in ("lightning", "torch", "builtins")
        and "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
    ]
    args = {name: _to_plain(kept[name]) for name in names if name in kept}
    chosen = vars(thing).get("chosen") or {}
    auto = {"auto": _to_plain(chosen)} if chosen else {}
    return {"class": type(thing).__name__, "args": args} | auto


def describe_for_journal(model: Any, prompts: PromptEncoder) -> dict[str, Any]:
    """Return what a journal says of its language model, for exports and for opening it again.

    Args:
        model: The language model.
        prompts: Its tokenizer, with the format of prompts.
    """
    form, opening = prompts.form, prompts.answer_opening
    return {
        "name": str(model.name_or_path),
        "dtype": str(model.dtype).removeprefix("torch."),
        # Runs of earlier versions have plain prompts and no such entry.
        **({} if form == PromptFormat() else {"prompts": form.to_dict()}),
        **({"answer_opening": opening} if opening.rstrip(" ") else {}),
    }


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, EditRequest):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if hasattr(value, "state_dict"):
        return describe(value)
    return str(value)
