"""Build the editor and data module of a benchmark cell with the command line's parser."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import lightning_edit.datamodules as data_modules
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ConfigError


@cache
def _parser() -> ArgumentParser:
    for name in data_modules.__all__:
        getattr(data_modules, name)  # import it: the parser only finds imported subclasses
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Editor, "editor", required=True)
    parser.add_subclass_arguments(EditDataModule, "data", required=True)
    return parser


def build(spec: Mapping[str, Any]) -> tuple[Editor, EditDataModule]:
    """Instantiate the editor and the data module of a benchmark cell.

    Args:
        spec: Specification as in :class:`~lightning_edit.benchmark.grid.Cell`.

    Returns:
        The editor, not yet bound to a model, and the data module, not yet set up.

    Raises:
        ConfigError: If a class or argument is unknown, or a value is invalid.
    """
    parser = _parser()
    try:
        options = parser.parse_object({"editor": spec["editor"], "data": spec["data"]})
        made = parser.instantiate(options)
    except (ArgumentError, ValueError) as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
        messages = [line for line in lines if "NoneType" not in line and "Subtypes" not in line]
        raise ConfigError("; ".join(messages)) from error
    return made.editor, made.data
