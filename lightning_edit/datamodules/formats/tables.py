"""Readers of tables: CSV, TSV and Parquet. They run no code from data, and load no torch."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from lightning_edit.edits.request_rows import to_plain
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Where

#: Separator of cells by extension.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Columns of own facts that hold lists, objects or numbers; their cells are JSON.
_JSON_COLUMNS = frozenset({"rephrases", "probes", "triple", "subject_start"})


def read_delimited(path: Path, text: str, delimiter: str) -> list[tuple[Where, Any]]:
    """Read a CSV or TSV file with a header line; every cell is text, an empty one is missing.

    The cells of the columns ``rephrases``, ``probes``, ``triple`` and ``subject_start`` are JSON.

    Args:
        path: The file, for messages.
        text: Its content.
        delimiter: Separator of cells.

    Raises:
        DataError: If the header or a row is not what is expected, with the line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    found: list[tuple[Where, Any]] = []
    line = 1
    try:
        for cells in reader:
            where, line = Where(str(path), len(found) + 1, line), reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(path, cells, delimiter)
                continue
            found.append((where, _row(where, header, cells)))
    except csv.Error as error:
        raise DataError(
            f"{path}: not valid {path.suffix[1:].upper()} at line {line} ({error}); put cells that "
            'hold separators, quotes or line breaks in double quotes, and write a quote as ""'
        ) from error
    if not found:
        raise DataError(f"{path}: expected a header line and rows below it, got no rows")
    return found


def read_parquet(path: Path) -> list[tuple[Where, Any]]:
    """Read a Parquet file; lists and objects are columns of their own types.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, or has no rows.
    """
    from pyarrow import ArrowException, parquet  # slow, and most files are not Parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a Parquet file that can be read ({reason})") from error
    if not rows:
        raise DataError(f"{path}: the table has no rows; expected at least one")
    return [
        (Where(str(path), number, unit="row"), to_plain(row))
        for number, row in enumerate(rows, start=1)
    ]


def _header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names[0][:1] in ("{", "["):
        raise DataError(
            f"{path}: expected a header line with the names of the columns, got JSON; "
            "name the file .jsonl or .json"
        )
    if len(names) == 1:
        other = next((sign for sign in (";", "\t", ",", "|") if sign in names[0]), None)
        if other is not None:
            raise DataError(
                f"{path}: expected cells separated by {delimiter!r}, got the header {names[0]!r}; "
                "save .csv with commas and .tsv with tabs"
            )
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice or "" in names:
        got = f"{twice[0]!r} twice" if twice else "a column without a name"
        raise DataError(
            f"{path}: expected a name of its own for every column, got {got}; rename or remove it "
            "(pandas writes no index with index=False)"
        )
    return names


def _row(where: Where, header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: expected {len(header)} cells as in the header, got {len(cells)}; "
            "put cells that hold the separator in double quotes"
        )
    return {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}


def _cell(name: str, cell: str) -> Any:
    if not cell.strip():
        return None
    if name not in _JSON_COLUMNS:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell  # the parser says what it expects there
