"""Shipped edits that act at run time: a folder with the editor, its parts and its edits.

``editor.json`` (class, arguments, edits, hashes of all files), ``model.json`` (the language model),
``parts/`` (what the editor has learnt), ``edits/`` (a delta file per commit), ``edits.jsonl`` (the
requests), ``README.md``. The folder holds data only: no pickle, no code.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import LedgerError, ShippedEditsError
from lightning_edit.export.data_files import (
    REMEDY,
    check_files,
    hash_files,
    read_json,
    require_type,
)
from lightning_edit.export.folder import EDITS
from lightning_edit.models.identity import describe_language_model, sizes_hash
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.storage.jsonl import write_rows
from lightning_edit.storage.results import versions
from lightning_edit.types import EditRequest

FORMAT = "lightning-edit-runtime/1"
EDITOR = "editor.json"
MODEL = "model.json"
PARTS = "parts"
#: Files that the hashes do not cover: the one that holds them, and the page for readers.
_UNCOVERED = (EDITOR, "README.md")


@runtime_checkable
class Shippable(Protocol):
    """A bound editor that can be written down."""

    @property
    def language_model(self) -> Any:
        """The language model."""

    @property
    def prompts(self) -> PromptEncoder:
        """Its tokenizer, with the format of prompts."""

    def plain_arguments(self) -> dict[str, Any]:
        """Return class and arguments as plain values."""

    def save_parts(self, folder: Path) -> None:
        """Write the learned parts."""


@dataclass(frozen=True)
class ShippedEdits:
    """Content of a folder of shipped edits, checked.

    Args:
        folder: The folder.
        editor: The editor's ``class`` and ``args``.
        module: Name of the module that defines the class.
        model: The language model, see
            :func:`~lightning_edit.models.identity.describe_language_model`, with ``sizes``, the
            hash of its shapes.
        edits: The commits in order: each delta with its requests.
    """

    folder: Path
    editor: Mapping[str, Any]
    module: str
    model: Mapping[str, Any]
    edits: tuple[tuple[Delta, tuple[EditRequest, ...]], ...]

    @property
    def parts(self) -> Path:
        """Folder of the editor's learned parts."""
        return self.folder / PARTS


def write_editor(folder: Path, editor: Shippable) -> None:
    """Write an editor to a folder: its class, arguments, learned parts and language model.

    Args:
        folder: An existing, empty folder.
        editor: A bound editor; its language model must be the unedited one, or hold edits that act
            at run time only.

    Raises:
        ConfigError: If an argument of the editor is no plain value.
        ShippedEditsError: If the editor writes a part that may hold code.
    """
    described = editor.plain_arguments()
    parts = folder / PARTS
    parts.mkdir()
    editor.save_parts(parts)
    if not any(parts.iterdir()):
        parts.rmdir()
    model = editor.language_model
    facts = describe_language_model(model, editor.prompts) | {"sizes": sizes_hash(model)}
    _write_json(folder / MODEL, facts)
    _write_index(folder, described, type(editor).__module__, ())


def add_edits(folder: Path, deltas: Sequence[Delta], requests: Sequence[Mapping[str, Any]]) -> None:
    """Add edits to a folder that :func:`write_editor` wrote.

    Args:
        folder: The folder; it has no edits yet.
        deltas: Their deltas, in the order of their commits.
        requests: Their requests as dictionaries.
    """
    index = read_json(folder / EDITOR)
    listed = []
    (folder / "edits").mkdir()
    for number, delta in enumerate(deltas, start=1):
        name = f"edits/{number:06d}.safetensors"
        delta.save(folder / name)
        listed.append({"file": name, "ids": list(delta.request_ids)})
    write_rows(folder / EDITS, requests)
    _write_index(folder, index["editor"], index["module"], listed)


def copy_editor(source: Path, folder: Path) -> None:
    """Copy the files of :func:`write_editor`, after a check of their hashes.

    Args:
        source: Folder of an editor without edits.
        folder: An existing, empty folder.

    Raises:
        ShippedEditsError: If a file is missing or was changed.
    """
    _, hashes = _read_index(source)
    for name in (EDITOR, *hashes):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_index(
    folder: Path, editor: Mapping[str, Any], module: str, edits: Sequence[Mapping[str, Any]]
) -> None:
    index = {
        "format": FORMAT,
        "lightning_edit": versions()["lightning-edit"],
        "editor": dict(editor),
        "module": module,
        "edits": list(edits),
        "files": hash_files(folder, _UNCOVERED),
    }
    _write_json(folder / EDITOR, index)


def _read_index(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read ``editor.json`` and check every file that it lists."""
    path = folder / EDITOR
    index = read_json(path)
    if (found := index.get("format")) != FORMAT:
        raise ShippedEditsError(
            f"{path}: expected format {FORMAT}, got {found!r:.60} (written by lightning-edit "
            f"{index.get('lightning_edit', 'unknown')!s:.20}); use that version, or export again"
        )
    editor = require_type(index.get("editor"), dict, f"{path}, `editor`")
    require_type(editor.get("class"), str, f"{path}, `editor.class`")
    require_type(editor.get("args"), dict, f"{path}, `editor.args`")
    require_type(index.get("module"), str, f"{path}, `module`")
    for place, edit in enumerate(require_type(index.get("edits"), list, f"{path}, `edits`")):
        what = f"{path}, `edits[{place}]"
        require_type(edit, dict, f"{what}`")
        require_type(edit.get("file"), str, f"{what}.file`")
        for name in require_type(edit.get("ids"), list, f"{what}.ids`"):
            require_type(name, str, f"{what}.ids`")
    hashes: dict[str, str] = require_type(index.get("files"), dict, f"{path}, `files`")
    for name, value in hashes.items():
        require_type(value, str, f"{path}, `files[{name!r:.60}]`")
    for name in (MODEL, *(edit["file"] for edit in index["edits"])):
        if name not in hashes:
            raise ShippedEditsError(f"{path} records no hash of {name!r:.60}; {REMEDY}")
    check_files(folder, hashes, _UNCOVERED)
    return index, hashes


def read_shipped(folder: Path) -> ShippedEdits:
    """Read and check a folder of shipped edits; nothing of it is executed.

    Args:
        folder: The folder.

    Returns:
        Its content; the deltas are in memory.

    Raises:
        ShippedEditsError: If a file is missing, changed, added, damaged, lies elsewhere, or has
            values of a wrong type; or an edit is not finite.
    """
    index, _ = _read_index(folder)
    path = folder / MODEL
    model = read_json(path)
    kinds = {"name": str, "dtype": str, "hash": str, "sizes": str, "bos": bool, "prompts": dict}
    for name, kind in kinds.items():
        require_type(model.get(name), kind, f"{path}, `{name}`")
    requests = _read_requests(folder / EDITS) if index["edits"] else {}
    edits = []
    for edit in index["edits"]:
        delta = _read_delta(folder / edit["file"], tuple(edit["ids"]))
        own = tuple(requests[name] for name in delta.request_ids if name in requests)
        edits.append((delta, own))
    return ShippedEdits(folder, index["editor"], index["module"], model, tuple(edits))


def _read_delta(path: Path, ids: tuple[str, ...]) -> Delta:
    try:
        delta = Delta.load(path)
    except LedgerError as error:
        raise ShippedEditsError(f"{error}; {REMEDY}") from error
    if delta.request_ids != ids:
        raise ShippedEditsError(
            f"{path} holds the edits {list(delta.request_ids)!r:.80}, but {EDITOR} lists "
            f"{list(ids)!r:.80}; {REMEDY}"
        )
    if broken := delta.not_finite():
        raise ShippedEditsError(
            f"{path}: {', '.join(broken[:4])} has NaN or infinite entries; {REMEDY}"
        )
    return delta


def _read_requests(path: Path) -> dict[str, EditRequest]:
    """Return the shipped requests by id."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                request = EditRequest.from_dict(json.loads(line))
                found[request.id] = request
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShippedEditsError(f"{path} holds no requests ({error}); {REMEDY}") from error
    return found
