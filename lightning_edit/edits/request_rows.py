"""Edit requests from Python rows: dictionaries, tables of pandas, data sets of ``datasets``.

Rows are checked by the parser of files, :mod:`lightning_edit.edits.own_facts`. Neither pandas nor
``datasets`` is imported: their objects are known by what they offer. Loads no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from lightning_edit.edits import own_facts
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Record, Where, describe
from lightning_edit.types import EditRequest

#: Names of missing values in pandas, besides NaN.
_MISSING = ("NAType", "NaTType")


def as_requests(requests: Any, first: int = 0, may_be_empty: bool = False) -> list[EditRequest]:
    """Convert user input to a list of ``EditRequest``; every field is checked as in a file.

    Args:
        requests: One request or several: :class:`~lightning_edit.types.EditRequest`, dictionaries
            with the fields of a JSONL file (docs/data.md), rows or a whole ``datasets.Dataset``,
            rows or a whole ``pandas.DataFrame``. ``None`` and NaN stand for a missing value.
        first: Number of the first request, for default ids (``edit-0``) of rows without an ``id``.
        may_be_empty: Whether no request at all is accepted.

    Returns:
        The requests.

    Raises:
        DataError: With row (from 1), field, expectation, and what was got.
    """
    listed = list_rows(requests)
    if not listed and not may_be_empty:
        raise DataError(
            "there are no requests to edit; give at least one, or a dictionary with `prompt` and "
            "`target`"
        )
    found: list[EditRequest] = []
    rows: dict[str, int] = {}
    for number, item in enumerate(listed, start=1):
        request = item if isinstance(item, EditRequest) else _parse(item, number, first)
        if request.id in rows:
            raise DataError(
                f"edit requests, row {number}: the id {request.id!r} is that of row "
                f"{rows[request.id]} already; give every request an id of its own"
            )
        rows[request.id] = number
        found.append(request)
    return found


def list_rows(rows: Any) -> list[Any]:
    """List the rows of a table, or the items of a list; one row is a list of one.

    Args:
        rows: A request, a mapping, a ``datasets.Dataset``, a ``pandas.DataFrame`` or a row of it,
            or an iterable of those.

    Returns:
        Requests as they are, everything else as plain Python values with ``None`` where a value is
        missing.

    Raises:
        DataError: If it holds no rows.
    """
    if isinstance(rows, EditRequest):
        return [rows]
    if isinstance(rows, Mapping):
        return _one_mapping(rows)
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas.DataFrame
        rows = rows.to_dict("records")
    elif hasattr(rows, "to_dict") and hasattr(rows, "index"):  # pandas.Series
        rows = [rows.to_dict()]
    elif hasattr(rows, "column_names") and hasattr(rows, "with_format"):  # datasets.Dataset
        rows = rows.with_format(None)
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise DataError(
            f"expected edit requests, dictionaries or a table of rows, got {describe(rows)}; "
            'write each as {"prompt": "...", "target": "..."}'
        )
    return [row if isinstance(row, EditRequest) else to_plain(row) for row in rows]


def _one_mapping(rows: Mapping[str, Any]) -> list[Any]:
    splits = [name for name, value in rows.items() if hasattr(value, "column_names")]
    if splits:
        raise DataError(
            f"expected the rows of one split, got a data set with the splits {', '.join(splits)}; "
            f"give one of them, such as data[{splits[0]!r}]"
        )
    return [to_plain(rows)]


def to_plain(value: Any) -> Any:
    """Convert values of Python, NumPy and pandas to those of JSON.

    Tuples and arrays become lists, NumPy numbers Python's, missing values (NaN, ``pandas.NA``)
    ``None``, probes and mappings dictionaries; anything else stays, for the parser to refuse.

    Args:
        value: A row, or a value in it.

    Example:
        >>> to_plain({"target": float("nan"), "rephrases": ("a", "b")})
        {'target': None, 'rephrases': ['a', 'b']}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        # As from pandas: NaN is not equal to itself.
        return value if value == value else None
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if hasattr(value, "to_dict") and hasattr(value, "index"):  # a row of pandas
        return to_plain(value.to_dict())
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # NumPy scalars and arrays
        return to_plain(value.tolist())
    if hasattr(value, "as_dict"):  # a request of a configuration file, read by jsonargparse
        return to_plain(value.as_dict())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _parse(row: Any, number: int, first: int) -> EditRequest:
    where = Where("edit requests", number, unit="row")
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: expected a request, or an object with named fields, got {describe(row)}; "
            'write each as {"prompt": "...", "target": "..."}'
        )
    return own_facts.parse(Record(row, where, strict=True), f"edit-{first + number - 1}")
