"""Reader of data files: JSON, JSON Lines, CSV, TSV, Parquet; each value with record and line."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from lightning_edit.datamodules.formats.tables import (
    DELIMITERS,
    read_delimited,
    read_parquet,
)
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Where, describe

_LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
#: Extensions of files that are read.
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_FOREIGN_FORMATS = {
    b"\x1f\x8b": "a gzip archive; unpack it with gunzip",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a Parquet file; name it .parquet",
}


def read_values(path: Path, suffix: str | None = None) -> list[tuple[Where, Any]]:
    """Read the records of a data file, with the location of each.

    The extension names CSV, TSV and Parquet; everything else is JSON, and the content decides
    between a list and JSON Lines. A byte order mark is accepted; ``NaN``, ``Infinity`` and
    duplicate fields of an object are rejected.

    Args:
        path: The file.
        suffix: Its extension; ``None``: that of ``path``.

    Raises:
        DataError: If the file is missing, is not UTF-8 text or not of its format, or has no
            records.
    """
    extension = (path.suffix if suffix is None else suffix).lower()
    if extension == ".parquet":
        _read_bytes(path)  # says what is wrong with the path
        return read_parquet(path)
    text = _read_text(path)
    if extension in DELIMITERS and text.strip():
        return read_delimited(path, text, DELIMITERS[extension])
    stripped = text.lstrip()
    if not stripped:
        raise DataError(f"{path}: the file is empty; expected records as a JSON list or JSON Lines")
    if stripped[0] != "[" and (extension in _LINE_SUFFIXES or _is_json_lines(stripped)):
        return list(_iter_json_lines(path, text))
    try:
        value = _parse(stripped)
    except json.JSONDecodeError as error:
        before = text[: len(text) - len(stripped)].count("\n")
        _raise_not_json(
            str(path), error, stripped, before, "the file ends in the middle; copy it again"
        )
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: {_describe_parse_error(error)}") from error
    if not isinstance(value, list):
        raise DataError(
            f"{path}: expected a list of records, got {describe(value)}; put the records in a list "
            "([...]), or one on each line of a file named .jsonl"
        )
    if not value:
        raise DataError(f"{path}: the list has no records; expected at least one")
    return [(Where(str(path), number), item) for number, item in enumerate(value, start=1)]


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(
                f"{path}: expected a file, got a pipe or device, which cannot be read again when a "
                "run is resumed; write its content to a file"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        names = [str(near) for near in path.parent.glob("*")]
        close = get_close_matches(str(path), names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DataError(f"{path}: there is no such file; check the path.{hint}") from error
    except IsADirectoryError as error:
        inside = sorted(f.name for f in path.iterdir() if f.suffix in DATA_SUFFIXES)
        offer = f"one of {', '.join(inside[:8])}" if inside else "a .json or .jsonl file"
        raise DataError(f"{path}: expected a file, got a folder; give {offer}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); check its permissions") from error
    except ValueError as error:  # a NUL in the path; also the pipe's error from above
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)!r} is no path of a file ({error}); check it") from error


def _read_text(path: Path) -> str:
    data = _read_bytes(path)
    for magic, remedy in _FOREIGN_FORMATS.items():
        if data.startswith(magic):
            raise DataError(f"{path}: expected JSON in UTF-8, got {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected JSON in UTF-8, got the byte 0x{data[error.start]:02x} at position "
            f"{error.start}; save the file as UTF-8 (is it a text file at all?)"
        ) from error


def _is_json_lines(text: str) -> bool:
    # A `.json` file may hold JSON Lines: its first line is then a whole object, and more follow.
    first, _, rest = text.partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        return isinstance(_parse(first), dict)
    except (ValueError, RecursionError):
        return False


def _iter_json_lines(path: Path, text: str) -> Iterator[tuple[Where, Any]]:
    # Not `splitlines`: JSON strings may contain U+2028 and other Unicode line separators.
    number = 0
    for at, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        number += 1
        where = Where(str(path), number, at)
        try:
            yield where, _parse(line)
        except json.JSONDecodeError as error:
            _raise_not_json(str(where), error, line, at - 1, "write each record whole, on one line")
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where}: {_describe_parse_error(error)}") from error


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_unique_fields)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is given twice in one object; keep one")
    return found


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null, or leave the field out")


def _raise_not_json(
    place: str, error: json.JSONDecodeError, text: str, lines_before: int, if_cut: str
) -> NoReturn:
    if (header := _table_header(text)) is not None:
        raise DataError(
            f"{place}: expected JSON, got a table of text (CSV) that begins {header!r}; name "
            "it .csv (.tsv with tabs), or write JSON Lines, one object of the fields on each line"
        ) from error
    at = f"line {error.lineno + lines_before}, column {error.colno}"
    cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    remedy = if_cut if cut else "correct it there"
    raise DataError(f"{place}: not valid JSON at {at}: {error.msg}; {remedy}") from error


def _table_header(text: str) -> str | None:
    """Return the beginning of the first line if the text looks like CSV, whatever its name."""
    lines = [line for line in text.split("\n", 2)[:2] if line.strip()]
    if not lines or lines[0].lstrip()[:1] in "{[":
        return None
    for separator in ",;\t":
        columns = [line.count(separator) for line in lines]
        if columns[0] and min(columns) == columns[0]:
            return lines[0].strip()[:60]
    return None


def _describe_parse_error(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values are nested too deeply to be records; expected a list of flat objects"
    if str(error).startswith("Exceeds the limit"):
        return "a number has thousands of digits; put it in quotes, or remove it"
    return str(error)
