"""Schema of ``results.json``, the versioned record of a run: build, validate and read it.

Tables, plots and pages need only this file and the run's JSONL files. Nothing here imports torch.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from lightning_edit.exceptions import DataError
from lightning_edit.types import Protocol

SCHEMA = 1
"""Schema version of ``results.json``; a change that breaks readers increments it."""
STATUSES = ("complete", "interrupted")

_PACKAGES = ("lightning-edit", "torch", "lightning", "transformers", "torchmetrics")
#: Required type of each field; a nested mapping lists the fields of an object.
_SCHEMA_FIELDS: dict[str, Any] = {
    "schema": int,
    "status": str,
    "editor": {"class": str, "args": dict},
    "language_model": {"name": str, "hash": str, "dtype": str},
    "data": {"class": str, "args": dict, "hash": str},
    "protocol": str,
    "batch_size": int,
    "seed": int,
    "versions": dict,
    "points": list,
    "timing": dict,
}
_POINT_FIELDS: dict[str, Any] = {"after": int, "metrics": dict, "before": dict, "counts": dict}
_TYPE_NAMES = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results of a run."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"


def build(
    *,
    editor: Mapping[str, Any],
    language_model: Mapping[str, Any],
    data: Mapping[str, Any],
    protocol: Protocol,
    batch_size: int,
    seed: int,
    points: Sequence[Mapping[str, Any]],
    timing: Mapping[str, float],
    status: str = "complete",
    events: Sequence[Mapping[str, Any]] = (),
    journal: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the ``results.json`` record of a run and validate it.

    Args:
        editor: ``class`` and ``args``.
        language_model: ``name``, ``hash`` of the pristine weights, ``dtype``.
        data: ``class``, ``args`` and ``hash`` of the requests.
        protocol: How the requests were written: ``single``, ``batch`` or ``sequential``.
        batch_size: Requests per commit.
        seed: Random seed of the run.
        points: One entry per evaluation, see :func:`~lightning_edit.session.points.points_of`.
        timing: Seconds by stage, and ``edits``.
        status: One of :data:`STATUSES`.
        events: Actions of callbacks, such as a rollback: ``by``, ``after``, ``event``.
        journal: Lines and last hash of the journal at the end of the run.

    Returns:
        Plain containers.

    Raises:
        DataError: If a field is missing or has the wrong type.
    """
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "status": status,
        "editor": dict(editor),
        "language_model": dict(language_model),
        "data": dict(data),
        "protocol": protocol,
        "batch_size": batch_size,
        "seed": seed,
        "versions": versions(),
        "points": [dict(point) for point in points],
        "timing": dict(timing),
    }
    if journal is not None:
        results["journal"] = dict(journal)
    if events:
        results["events"] = [dict(event) for event in events]
    validate(results, "results")
    return results


def validate(results: Mapping[str, Any], source: str) -> None:
    """Validate a record against the schema.

    Args:
        results: The record.
        source: Origin of the record, for the error message.

    Raises:
        DataError: At the first field that is missing or wrong.
    """
    if results.get("schema") != SCHEMA:
        raise DataError(
            f"{source}: expected schema {SCHEMA}, got {results.get('schema')!r}; "
            "read it with the version of lightning-edit that wrote it"
        )
    _check(results, _SCHEMA_FIELDS, source)
    for field, allowed in (("status", STATUSES), ("protocol", get_args(Protocol))):
        if results[field] not in allowed:
            _fail(source, field, f"one of {', '.join(allowed)}", results[field])
    if "journal" in results:  # absent in records of older versions
        _check(results, {"journal": {"lines": int, "head": str}}, source)
    for number, point in enumerate(results["points"]):
        where = f"{source}, points[{number}]"
        if not isinstance(point, Mapping):
            _fail(source, f"points[{number}]", "an object", point)
        _check(point, _POINT_FIELDS, where)
        for field in ("metrics", "before", "counts"):
            for name, value in point[field].items():
                if not isinstance(value, int | float) or not math.isfinite(value):
                    _fail(where, f"{field}.{name}", "a finite number", value)


def _check(record: Mapping[str, Any], form: Mapping[str, Any], source: str) -> None:
    for field, expected in form.items():
        kind = dict if isinstance(expected, dict) else expected
        if field not in record:
            raise DataError(f"{source}: the field {field!r} is missing; write the file anew")
        value = record[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            _fail(source, field, _TYPE_NAMES[kind], value)
        if isinstance(expected, dict):
            _check(value, expected, f"{source}, {field}")


def _fail(source: str, field: str, expected: str, got: object) -> None:
    raise DataError(f"{source}: `{field}` must be {expected}, got {got!r}; write the file anew")


def read_results(path: Path) -> dict[str, Any]:
    """Read and validate the ``results.json`` of a run.

    Args:
        path: ``results.json``, or its run folder.

    Returns:
        Plain containers.

    Raises:
        DataError: If the file is missing or does not match the schema.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{file} does not exist; give the folder of a run that has ended, "
            "or finish it with `lightning-edit resume`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not JSON, {error}; give the results.json of a run") from error
    if not isinstance(results, dict):
        raise DataError(f"{file}: expected an object, got {type(results).__name__}")
    validate(results, str(file))
    return results
