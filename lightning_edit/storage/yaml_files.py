"""YAML files of options, read with bounds: a few lines of aliases can stand for billions of values.

Nothing here imports torch.
"""

from pathlib import Path
from typing import Any

import yaml

from lightning_edit.exceptions import ConfigError

#: Most values that a file may stand for, its aliases written out.
MAX_VALUES = 100_000
#: Largest file, in bytes.
_MAX_BYTES = 10_000_000
#: Deepest nesting.
_MAX_DEPTH = 60


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of options.

    Args:
        path: The file.

    Raises:
        ConfigError: If it is no file of options: missing, not readable, not YAML, no mapping of
            names to values, or one that aliases blow up.
    """
    node = check_yaml(path)
    if node is None:
        return {}
    try:
        content: dict[str, Any] = yaml.SafeLoader("").construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    return content


def check_yaml(path: Path) -> Any:
    """Check a YAML file of options before it is parsed; return its root node, ``None`` if empty.

    Args:
        path: The file.

    Raises:
        ConfigError: As for :func:`read_yaml`.
    """
    text = _read(path)
    try:
        # Events come one by one, while the composer calls itself for every level.
        if _depth(text) > _MAX_DEPTH:
            raise ConfigError(f"{path}: nested more than {_MAX_DEPTH} deep; options are not")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not YAML ({reason}); correct it there") from error
    if node is None:
        return None
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(
            f"{path}: expected options as names and values (`name: value` on each line), got {kind}"
        )
    if _count(node, path, {}, 0) > MAX_VALUES:
        raise ConfigError(
            f"{path}: its anchors and aliases (& and *) stand for more than {MAX_VALUES:,} values; "
            "write the options out"
        )
    return node


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: expected a YAML file, got a folder")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: expected a YAML file, got a pipe or device")
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: too large for a file of options; is it a data file?")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r}: no file of text in UTF-8 ({error})") from error


def _depth(text: str) -> int:
    """Return the depth of nesting, up to one more than what is allowed."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > _MAX_DEPTH:
                break
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return deepest


def _count(node: Any, path: Path, known: dict[int, int], depth: int) -> int:
    """Count the values that a node stands for; an alias is the same node again."""
    if depth > _MAX_DEPTH:  # also of a node inside itself
        raise ConfigError(f"{path}: nested more than {_MAX_DEPTH} deep; options are not")
    if id(node) in known:
        return known[id(node)]
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(
            _count(key, path, known, depth + 1) + _count(value, path, known, depth + 1)
            for key, value in node.value
        )
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, path, known, depth + 1) for item in node.value)
    known[id(node)] = total
    return total
