"""From a file to its JSON values: one list, or one value a line."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from lightning_edit.datamodules.formats.record import Where, describe
from lightning_edit.exceptions import DataError

_LINES = frozenset({".jsonl", ".ndjson"})
_PACKED = {
    b"\x1f\x8b": "a gzip archive; unpack it with gunzip",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a Parquet file; export it as JSON Lines",
}


def read_values(path: Path) -> list[tuple[Where, Any]]:
    """Read a JSON list or a JSON Lines file, with the place of each value in it.

    The content decides which of the two it is. A byte order mark is accepted; ``NaN``, ``Infinity``
    and a field given twice in one object are refused.

    Raises:
        DataError: If there is no such file, it is not UTF-8 text, not JSON, or has no records.
    """
    text = _read_text(path)
    stripped = text.lstrip()
    if not stripped:
        raise DataError(f"{path}: the file is empty; expected records as a JSON list or JSON Lines")
    if stripped[0] != "[" and (path.suffix.lower() in _LINES or _is_lines(stripped)):
        return list(_lines(path, text))
    try:
        value = _parse(stripped)
    except json.JSONDecodeError as error:
        before = text[: len(text) - len(stripped)].count("\n")
        _not_json(str(path), error, stripped, before, "the file ends in the middle; copy it again")
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: {_unreadable(error)}") from error
    if not isinstance(value, list):
        raise DataError(
            f"{path}: expected a list of records, got {describe(value)}; put the records in a list "
            "([...]), or one on each line of a file named .jsonl"
        )
    if not value:
        raise DataError(f"{path}: the list has no records; expected at least one")
    return [(Where(str(path), number), item) for number, item in enumerate(value, start=1)]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        names = [str(near) for near in path.parent.glob("*")]
        close = get_close_matches(str(path), names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DataError(f"{path}: there is no such file; check the path.{hint}") from error
    except IsADirectoryError as error:
        inside = sorted(f.name for f in path.iterdir() if f.suffix in {".json", *_LINES})
        offer = f"one of {', '.join(inside[:8])}" if inside else "a .json or .jsonl file"
        raise DataError(f"{path}: expected a file, got a folder; give {offer}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); check its permissions") from error
    for magic, remedy in _PACKED.items():
        if data.startswith(magic):
            raise DataError(f"{path}: expected JSON in UTF-8, got {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected JSON in UTF-8, got the byte 0x{data[error.start]:02x} at position "
            f"{error.start}; save the file as UTF-8 (is it a text file at all?)"
        ) from error


def _is_lines(text: str) -> bool:
    # A `.json` file may hold JSON Lines: its first line is then an object of its own, and more
    # follow.
    first, _, rest = text.partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        return isinstance(_parse(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path, text: str) -> Iterator[tuple[Where, Any]]:
    # Not `splitlines`: JSON strings may contain U+2028 and other line ends of Unicode.
    number = 0
    for at, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        number += 1
        where = Where(str(path), number, at)
        try:
            yield where, _parse(line)
        except json.JSONDecodeError as error:
            _not_json(str(where), error, line, at - 1, "write each record whole, on one line")
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where}: {_unreadable(error)}") from error


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is given twice in one object; keep one")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null, or leave the field out")


def _not_json(
    place: str, error: json.JSONDecodeError, text: str, lines_before: int, if_cut: str
) -> NoReturn:
    at = f"line {error.lineno + lines_before}, column {error.colno}"
    cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    remedy = if_cut if cut else "correct it there"
    raise DataError(f"{place}: not valid JSON at {at}: {error.msg}; {remedy}") from error


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values are nested too deeply to be records; expected a list of flat objects"
    if str(error).startswith("Exceeds the limit"):
        return "a number has thousands of digits; put it in quotes, or remove it"
    return str(error)
