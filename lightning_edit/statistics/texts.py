"""Text corpora as streams of documents: a local file, or a data set by name. Loads no torch."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import DataError

_FILES = (".txt", ".jsonl", ".ndjson")


class Texts(ABC):
    """Text corpus: documents that can be iterated from the beginning any number of times."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Key that identifies the corpus, as far as possible without reading the documents."""

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of documents; ``None`` if it is unknown without reading them."""

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Yield the documents."""


@dataclass(frozen=True)
class FileTexts(Texts):
    """Text corpus of a local file, one document per line.

    Args:
        path: Plain text, or JSON Lines (``.jsonl``, ``.ndjson``).
        field: Field of a JSON record that holds the text.
    """

    path: Path
    field: str = "text"

    @property
    def identity(self) -> str:
        """Path, size, modification time and text field of the file."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        return f"{self.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{self.field}"

    def count(self) -> int:
        """Count the documents, i.e. lines that are not empty."""
        try:
            with self.path.open("rb") as file:
                return sum(1 for line in file if line.strip())
        except OSError as error:
            raise self._unreadable(error) from error

    def __iter__(self) -> Iterator[str]:
        """Yield the documents.

        Raises:
            DataError: If the file is missing, or a line does not match its format.
        """
        try:
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if text := self._text(number, line.strip()).strip():
                        yield text
        except OSError as error:
            raise self._unreadable(error) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: not UTF-8 text ({error.reason}); convert the file"
            ) from error

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: {error.strerror}; give a .txt or .jsonl file")

    def _text(self, number: int, line: str) -> str:
        if self.path.suffix == ".txt" or not line:
            return line
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {number}: not JSON ({error.msg}); one record a line"
            ) from error
        text = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"{self.path}, line {number}: expected an object with a text in field "
                f"`{self.field}`, got {line[:60]!r}"
            )
        return text


@dataclass(frozen=True)
class NamedTexts(Texts):
    """Text corpus streamed from a data set of the package ``datasets``, by name or folder.

    Only data is read; ``datasets`` 4 and later run no code of a data set.

    Args:
        name: Name on the hub, or a folder: of data files, or one that ``save_to_disk`` wrote.
        config: Configuration, such as ``wikitext-103-raw-v1``.
        split: Split of the data set.
        field: Column that holds the text.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"

    @property
    def identity(self) -> str:
        """Name, configuration, split and column."""
        return json.dumps([self.name, self.config, self.split, self.field])

    def count(self) -> int | None:
        """Return the number of rows from the data set's metadata; ``None`` if it has none."""
        data = self._open()
        splits = getattr(data.info, "splits", None) or {}
        rows = getattr(splits.get(self.split), "num_examples", None)
        return len(data) if hasattr(data, "__len__") else rows or None

    def __iter__(self) -> Iterator[str]:
        """Yield the documents.

        Raises:
            DataError: If the data set or its text column is missing.
        """
        rows = self._rows()
        for number, row in enumerate(rows, start=1):
            text = row.get(self.field)
            if not isinstance(text, str):
                raise DataError(
                    f"{self.name}, row {number}: expected a text in column `{self.field}`, got "
                    f"columns {', '.join(row)}; name the column with --text_field"
                )
            if text := text.strip():
                yield text

    def _rows(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self._open())
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except _load_exceptions() as error:
                raise self._load_error(error) from error
            yield row

    def _open(self) -> Any:
        from datasets import load_dataset, load_from_disk  # slow; most corpora are files

        try:
            if any((Path(self.name) / file).is_file() for file in ("state.json", _DICT)):
                saved = load_from_disk(self.name)
                return saved[self.split] if isinstance(saved, dict) else saved
            return load_dataset(self.name, self.config, split=self.split, streaming=True)
        except _load_exceptions() as error:
            raise self._load_error(error) from error

    def _load_error(self, error: Exception) -> DataError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return DataError(
            f"{self.name}: the data set cannot be read ({reason}); check --text, --text_config, "
            "--text_split and the connection, or give a .txt or .jsonl file"
        )


#: File that `save_to_disk` writes for a dictionary of splits.
_DICT = "dataset_dict.json"


def _load_exceptions() -> tuple[type[Exception], ...]:
    """Return the exceptions of loading a data set: no network, unknown name, split or config."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases include the root error of the HTTP client, which differs by hub version.
    parents = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, ValueError, KeyError, *parents)


def texts_of(
    source: str, config: str | None = None, split: str = "train", field: str = "text"
) -> Texts:
    """Open a text corpus by file path, folder or data set name.

    Args:
        source: A ``.txt``, ``.jsonl`` or ``.ndjson`` file, or a data set: a name on the hub, or a
            folder.
        config: Configuration of a data set.
        split: Split of a data set.
        field: Field of JSON records, or column of a data set, that holds the text.

    Raises:
        DataError: If the file has another suffix, or the path does not exist.
    """
    path = Path(source).expanduser()
    if path.is_file() or (path.suffix in _FILES and not path.is_dir()):
        if path.suffix not in _FILES:
            raise DataError(
                f"{path}: expected a file with one document a line, {', '.join(_FILES)}, got "
                f"{path.suffix or 'no suffix'}; convert it, or give the folder that holds it to "
                "be read by the package `datasets`"
            )
        return FileTexts(path, field)
    if not path.exists() and (path.is_absolute() or source.startswith((".", "~"))):
        raise DataError(f"{path}: no such file or folder; give a .txt or .jsonl file")
    return NamedTexts(str(path) if path.exists() else source, config, split, field)
