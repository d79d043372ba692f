"""Data files of a folder that came from elsewhere: plain names, known kinds, recorded hashes."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_edit.edits.entries import file_hash
from lightning_edit.exceptions import ShippedEditsError

#: Kinds of files that hold data only; nothing else is written or read.
DATA_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model")
REMEDY = "get the folder again as `lightning-edit export` wrote it"


def hash_files(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path relative to the folder.

    Args:
        folder: The folder.
        but: Paths that are left out.

    Raises:
        ShippedEditsError: If a file may hold code, or is a link.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in but or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file() or path.suffix not in DATA_SUFFIXES:
            raise ShippedEditsError(
                f"{path} is no plain data file; an editor ships files that end in "
                f"{', '.join(DATA_SUFFIXES)} and no links"
            )
        found[name] = file_hash(path)
    return found


def check_files(folder: Path, hashes: Mapping[str, str], but: tuple[str, ...] = ()) -> None:
    """Check that a folder holds the recorded files, and no others.

    Args:
        folder: The folder.
        hashes: Recorded SHA-256 by relative path.
        but: Paths that are not looked at.

    Raises:
        ShippedEditsError: If a path leaves the folder, or a file is missing, changed, added, a link
            or of a kind that may hold code.
    """
    for name in hashes:
        plain = PurePosixPath(name)
        escapes = plain.is_absolute() or ".." in plain.parts or set("\\:\0") & set(name)
        if escapes or plain.as_posix() != name or name == ".":
            raise ShippedEditsError(
                f"{folder} names {name!r} as one of its files, which is not inside it; nothing was "
                "read. Do not use a folder of a source that you do not trust"
            )
    present = hash_files(folder, but)
    if missing := sorted(hashes.keys() - present.keys()):
        raise ShippedEditsError(f"{folder / missing[0]} is missing; {REMEDY}")
    if added := sorted(present.keys() - hashes.keys()):
        raise ShippedEditsError(f"{folder / added[0]} does not belong to the export; {REMEDY}")
    for name, recorded in hashes.items():
        if present[name] != recorded:
            raise ShippedEditsError(
                f"{folder / name} is not what was exported (SHA-256 differs); {REMEDY}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Raises:
        ShippedEditsError: If it is missing, a link, or holds something else.
    """
    if path.is_symlink() or not path.is_file():
        raise ShippedEditsError(
            f"{path} is missing; give a folder that `lightning-edit export --format runtime` wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShippedEditsError(f"{path} is no JSON ({error}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise ShippedEditsError(f"{path} holds a {type(found).__name__}, no object; {REMEDY}")
    return found


def require_type(value: object, kind: type, what: str) -> Any:
    """Return a value of a JSON file, or say that it has the wrong type.

    Args:
        value: The value.
        kind: The type that it must have.
        what: The file and the entry, for the message.

    Raises:
        ShippedEditsError: If it has another type.
    """
    if type(value) is not kind:
        raise ShippedEditsError(
            f"{what}: expected {kind.__name__}, got {type(value).__name__} ({value!r:.60}); "
            f"{REMEDY}"
        )
    return value
