"""Parse the YAML file of a benchmark into its grid. Nothing here imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_edit.benchmark.grid import Cell, ColumnGroup, Grid, Published
from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.yaml_files import check_yaml

#: Sections of the file, and whether each is optional.
_SECTIONS = {
    "title": True,
    "note": True,
    "models": False,
    "data": False,
    "methods": False,
    "protocols": False,
    "cells": True,
    "seeds": True,
    "trainer": True,
    "modes": True,
    "columns": True,
    "curves": True,
    "summary": True,
    "published": True,
}
_METHOD_KEYS = ("config", "class_path", "init_args", "per_model", "protocols", "absent")
_MODEL_KEYS = (
    *(
        "lm",
        "lm_dtype",
        "lm_bos",
        "lm_revision",
        "lm_trust_remote_code",
        "lm_chat",
        "lm_system",
        "lm_chat_options",
        "lm_end_answers",
    ),
    "optional",
)
_PROTOCOL_KEYS = ("protocol", "batch_size", "eval_at", "edits", "memory")
_AXES = ("models", "data", "methods", "protocols")


def read_grid(path: str | Path) -> Grid:
    """Read a benchmark grid from YAML and expand it into cells.

    Args:
        path: The YAML file.

    Returns:
        The grid; its editors and data modules are not built yet.

    Raises:
        ConfigError: If the file is not a valid grid; it names the section and the problem.
    """
    path = Path(path)
    content = _read_yaml(path)
    _check_keys(content, tuple(_SECTIONS), str(path))
    for section, optional in _SECTIONS.items():
        if not optional and not content.get(section):
            raise ConfigError(f"{path} has no section {section!r}; see docs/benchmark.md")
    sections = {axis: _check_section(content[axis], f"{path}, {axis}") for axis in _AXES}
    for name, model in sections["models"].items():
        _check_keys(model, _MODEL_KEYS, f"{path}, models, {name}")
    for name, protocol in sections["protocols"].items():
        _check_keys(protocol, _PROTOCOL_KEYS, f"{path}, protocols, {name}")
    methods = {
        name: _parse_method(entry, path, name) for name, entry in sections["methods"].items()
    }
    blocks = content.get("cells") or [{}]
    cells = [
        _parse_cell(content, sections, methods, model, data, protocol, method, seed)
        for block in blocks
        for model, data, protocol, method in _combinations(block, sections, path)
        if protocol in (methods[method]["protocols"] or [protocol])
        for seed in content.get("seeds") or [0]
    ]
    names = [cell.name for cell in cells]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}: the cell {duplicate} is asked for twice; see its `cells`")
    return Grid(
        path,
        str(content.get("title", path.stem)),
        str(content.get("note", "")).strip(),
        tuple(cells),
        sections["models"],
        tuple(_parse_columns(entry, sections, path) for entry in content.get("columns") or ()),
        tuple(content.get("curves") or ()),
        tuple(_parse_published(entry, cells, path) for entry in content.get("published", ())),
        content.get("trainer") or {},
        _parse_summary(content.get("summary") or {}, sections, path),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.exists():
        check_yaml(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give the YAML file of a grid") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections, got {type(content).__name__}")
    return content


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := [name for name in entry if name not in known]:
        raise ConfigError(f"{where}: {unknown[0]!r} is not known; known: {', '.join(known)}")


def _check_section(section: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(section, dict) or not all(
        isinstance(entry, dict) for entry in section.values()
    ):
        raise ConfigError(f"{where}: expected names and, under each, its options")
    if bad := next((name for name in section if "/" in str(name) or "-" in str(name)), None):
        raise ConfigError(f"{where}: {bad!r} names a folder, so it takes neither / nor -")
    return {str(name): entry for name, entry in section.items()}


def _parse_method(entry: Mapping[str, Any], path: Path, name: str) -> dict[str, Any]:
    """Return a method's class, arguments, arguments by model, and reasons to skip models."""
    where = f"{path}, methods, {name}"
    _check_keys(entry, _METHOD_KEYS, where)
    if ("config" in entry) == ("class_path" in entry):
        raise ConfigError(f"{where}: give either `config`, a file of configs/method, or class_path")
    base = _read_editor(path.parent / entry["config"]) if "config" in entry else dict(entry)
    arguments = _deep_merge(base.get("init_args") or {}, entry.get("init_args") or {})
    per_model = {
        model: _arguments_of_file(path.parent / given, base["class_path"])
        if isinstance(given, str)
        else given
        for model, given in (entry.get("per_model") or {}).items()
    }
    return {
        "class_path": base["class_path"],
        "init_args": arguments,
        "per_model": per_model,
        "protocols": entry.get("protocols"),
        "absent": entry.get("absent") or {},
    }


def _arguments_of_file(path: Path, class_path: str) -> dict[str, Any]:
    """Read the editor arguments in a file of configs/method; the class must match."""
    found = _read_editor(path)
    if found["class_path"].rpartition(".")[2] != class_path.rpartition(".")[2]:
        raise ConfigError(f"{path} is of {found['class_path']}, but the method is {class_path}")
    return dict(found.get("init_args") or {})


def _read_editor(path: Path) -> dict[str, Any]:
    """Read class and arguments of the editor in a file of configs/method."""
    model = _read_yaml(path).get("model")
    if isinstance(model, str):
        return {"class_path": model}
    if not isinstance(model, dict) or not isinstance(model.get("class_path"), str):
        raise ConfigError(f"{path} names no editor; give a file as configs/method has them")
    return dict(model)


def _deep_merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two option dicts recursively (also inside an editor's host); the second wins."""
    both = dict(first)
    for name, value in second.items():
        inside = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = _deep_merge(both[name], value) if inside else value
    return both


def _combinations(
    block: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], path: Path
) -> list[tuple[str, str, str, str]]:
    _check_keys(block, _AXES, f"{path}, cells")
    chosen = {}
    for axis in _AXES:
        names = block.get(axis) or list(sections[axis])
        if missing := [name for name in names if name not in sections[axis]]:
            raise ConfigError(f"{path}, cells: {axis} has no {missing[0]!r}")
        chosen[axis] = names
    return [
        (model, data, protocol, method)
        for model in chosen["models"]
        for data in chosen["data"]
        for protocol in chosen["protocols"]
        for method in chosen["methods"]
    ]


def _parse_cell(
    content: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    methods: Mapping[str, Mapping[str, Any]],
    model: str,
    data: str,
    protocol: str,
    method: str,
    seed: int,
) -> Cell:
    chosen, options = methods[method], dict(sections["protocols"][protocol])
    source = dict(sections["data"][data])
    if (edits := options.pop("edits", None)) is not None:
        source["init_args"] = {**source.get("init_args", {}), "limit": edits}
    memory = bool(options.pop("memory", False))
    arguments = _deep_merge(chosen["init_args"], chosen["per_model"].get(model, {}))
    lm = {name: value for name, value in sections["models"][model].items() if name != "optional"}
    spec = {
        "lm": lm,
        "data": source,
        "editor": {"class_path": chosen["class_path"], "init_args": arguments},
        "protocol": options,
        "modes": list(content.get("modes") or ("tf", "gen")),
        "seed": seed,
    }
    absent = chosen["absent"].get(model)
    return Cell(model, data, protocol, method, seed, spec, absent, memory)


def _parse_columns(
    entry: Any, sections: Mapping[str, Mapping[str, Any]], path: Path
) -> ColumnGroup:
    if isinstance(entry, list):
        return ColumnGroup(tuple(map(str, entry)))
    _check_keys(entry, tuple(ColumnGroup.__dataclass_fields__), f"{path}, columns")
    for axis in ("protocols", "data"):
        if missing := [name for name in entry.get(axis, ()) if name not in sections[axis]]:
            raise ConfigError(f"{path}, columns: {axis} has no {missing[0]!r}")
    values = {name: tuple(value) for name, value in entry.items() if name != "title"}
    return ColumnGroup(title=str(entry.get("title", "")), **values)


def _parse_summary(
    entry: Any, sections: Mapping[str, Mapping[str, Any]], path: Path
) -> tuple[tuple[str, str], ...]:
    """Return pairs of protocol and column, from columns by protocol."""
    where = f"{path}, summary"
    if not isinstance(entry, dict) or not all(isinstance(v, list) for v in entry.values()):
        raise ConfigError(f"{where}: expected protocols and, under each, a list of its columns")
    _check_keys(entry, list(sections["protocols"]), where)
    return tuple((str(name), str(column)) for name, columns in entry.items() for column in columns)


def _parse_published(entry: Mapping[str, Any], cells: Sequence[Cell], path: Path) -> Published:
    where = f"{path}, published"
    _check_keys(entry, tuple(Published.__dataclass_fields__), where)
    try:
        values = {
            method: {column: float(figure) for column, figure in figures.items()}
            for method, figures in entry["values"].items()
        }
        published = Published(**{**entry, "values": values})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error!r}") from error
    place = (published.model, published.data, published.protocol)
    if all((cell.model, cell.data, cell.protocol) != place for cell in cells):
        raise ConfigError(f"{where}: the grid has no cells {' · '.join(place)}")
    return published
