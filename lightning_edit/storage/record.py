"""Typed field access to a record of a file or table; errors name place, expectation, remedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_edit.exceptions import DataError

EMPTY_PROBE = "empty prompt, probe left out"


@dataclass(frozen=True)
class Where:
    """Location of a record: file, record number and line.

    Args:
        file: Name of the file, as the user gave it.
        number: Number of the record, from 1.
        line: Line of a JSON Lines, CSV or TSV file, from 1; ``None`` elsewhere.
        unit: What a record is called there: ``row`` in a table or in Python.
    """

    file: str
    number: int
    line: int | None = None
    unit: str = "record"

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.file}, {self.unit} {self.number}{line}"


@dataclass(frozen=True)
class Note:
    """Warning about a record that could still be parsed.

    Args:
        kind: Kind of note, as shown in the report; notes of one kind are counted together.
        number: Number of the record, from 1.
        detail: The field or text concerned.
    """

    kind: str
    number: int
    detail: str


@dataclass(frozen=True)
class Record:
    """JSON object of a data file, with typed access to its fields.

    Args:
        values: The object.
        where: Its location.
        strict: Whether every mistake is an error, as in a user's own file. Otherwise the file is a
            published benchmark: an empty probe is skipped with a note, and a number is accepted as
            an answer.
        notes: List that notes are appended to.
        path: Dotted name of this object inside the record, with a trailing dot; empty at the top.
    """

    values: Mapping[str, Any]
    where: Where
    strict: bool = False
    notes: list[Note] = field(default_factory=list)
    path: str = ""

    def has(self, name: str) -> bool:
        """Return whether a field is present and not null."""
        return self.values.get(name) is not None

    def note(self, kind: str, detail: str) -> None:
        """Append a note (warning) for the report."""
        self.notes.append(Note(kind, self.where.number, detail))

    def text(self, *names: str) -> str:
        """Return the first present field of these as stripped, non-empty text."""
        for name in names:
            if name in self.values:
                text = self._text(name, self.values[name])
                if not text:
                    self.fail(name, "text", self.values[name], "fill it in, or remove the record")
                return text
        raise self._missing(names)

    def written(self, name: str) -> str:
        """Return a required text as it is written, white space at its ends included."""
        self.text(name)
        return str(self.values[name])

    def optional_text(self, name: str) -> str | None:
        """Return a text field; ``None`` if it is absent, null or empty."""
        return (self._text(name, self.values[name]) or None) if self.has(name) else None

    def optional_written(self, name: str) -> str | None:
        """Return a text as it is written; ``None`` if it is absent, null or blank."""
        return None if self.optional_text(name) is None else str(self.values[name])

    def separator(self, name: str) -> str | None:
        """Return a text that may be empty or blank; ``None`` if it is absent or null."""
        if not self.has(name):
            return None
        self._text(name, self.values[name])
        return str(self.values[name])

    def probe_text(self, name: str) -> str | None:
        """Return the prompt of a probe; the field is required, an empty prompt is noted."""
        if name not in self.values:
            raise self._missing((name,))
        text = self.optional_text(name)
        if text is None:
            self.note(EMPTY_PROBE, f"`{self.path}{name}`")
        return text

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, empty if absent; if not strict, a single text is accepted.

        In a strict record the texts stay as they are written; else they are stripped.
        """
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, str) and not self.strict:
            value = [value]
        if not isinstance(value, list):
            self.fail(name, "a list of texts", value, 'write it as ["...", "..."]')
        found = [(f"{name}[{i}]", self._text(f"{name}[{i}]", item)) for i, item in enumerate(value)]
        for at, text in found:
            if not text and self.strict:
                self.fail(at, "text", text, "fill it in, or remove it")
            if not text:
                self.note(EMPTY_PROBE, f"`{self.path}{at}`")
        if self.strict:
            return tuple(value)
        return tuple(text for _, text in found if text)

    def answers(self, name: str) -> tuple[str, ...]:
        """Return accepted answers: a text, a list of texts, or a list of lists of aliases.

        Nested lists are flattened in order and duplicates removed. The result is empty if there is
        no answer; the caller turns that into an error or a note.
        """
        if not self.has(name):
            return ()
        found = [(at, self._answer(at, value)) for at, value in _flatten(name, self.values[name])]
        empty = [at for at, text in found if not text]
        if empty and self.strict:
            self.fail(empty[0], "text", "", "fill it in, or remove it")
        if empty and len(empty) < len(found):
            self.note("empty alias, left out", f"`{self.path}{empty[0]}`")
        if self.strict:
            return tuple(
                dict.fromkeys(str(value) for _, value in _flatten(name, self.values[name]))
            )
        return tuple(dict.fromkeys(text for _, text in found if text))

    def child(self, name: str) -> "Record":
        """Return a nested object as a record; the field is required."""
        if name not in self.values:
            raise self._missing((name,))
        return self._object(name, self.values[name])

    def children(self, name: str) -> list["Record"]:
        """Return a list of nested objects as records; empty if absent or null."""
        items = self.items(name, "a list of objects")
        return [self._object(f"{name}[{i}]", item) for i, item in enumerate(items)]

    def items(self, name: str, expected: str) -> list[Any]:
        """Return a list of any values; empty if absent or null."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, expected, value, "put it in a list: [...]")
        return value

    def allow(self, names: Sequence[str], written_as: Mapping[str, str] | None = None) -> None:
        """Reject unknown fields, i.e. those not in ``names``; suggest a correction.

        Args:
            names: The fields that are known.
            written_as: Names that other tools use, and what is written here.
        """
        for name in self.values:
            if name not in names:
                known = (written_as or {}).get(name)
                hint = f" Here it is {known}." if known else _guess(name, names)
                raise DataError(
                    f"{self.where}: unknown field `{self.path}{name}`; remove or rename it."
                    f"{hint} The fields are {', '.join(names)}"
                )

    def fail(self, name: str, expected: str, got: object, remedy: str) -> NoReturn:
        """Raise a ``DataError`` about one field."""
        raise DataError(
            f"{self.where}, field `{self.path}{name}`: expected {expected}, got {describe(got)}; "
            f"{remedy}"
        )

    def _missing(self, names: Sequence[str]) -> DataError:
        wanted = " or ".join(f"`{self.path}{name}`" for name in names)
        there = ", ".join(map(str, self.values)) or "none"
        hint = _guess(names[0], [name for name in map(str, self.values) if name not in names])
        return DataError(
            f"{self.where}: expected a field {wanted}, got none of that name; add it.{hint} "
            f"Fields there: {shorten(there, 200)}"
        )

    def _object(self, name: str, value: object) -> "Record":
        if not isinstance(value, dict):
            self.fail(name, "an object", value, 'write it as {"...": "..."}')
        return Record(value, self.where, self.strict, self.notes, f"{self.path}{name}.")

    def _answer(self, name: str, value: object) -> str:
        if self.strict:
            return self._text(name, value)
        if value is None:
            return ""
        return self._text(name, str(value) if _is_number(value) else value)

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            remedy = "put it in quotes" if _is_number(value) else "write text there"
            self.fail(name, "text", value, remedy)
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(
                name, "text", value, "it has half of a surrogate pair; save the file as UTF-8"
            )
        return value.strip()


def describe(value: object) -> str:
    """Describe a JSON value briefly, for an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {shorten(str(value), 30)}"
        case str():
            return f"the text {shorten(value, 40)!a}" if value.strip() else "empty text"
        case list():
            return f"a list of {len(value)}"
        case dict():
            keys = shorten(", ".join(map(str, value)), 60)
            return f"an object with the fields {keys}" if value else "an empty object"
    return f"a {type(value).__name__}"


def shorten(text: str, limit: int) -> str:
    """Truncate a text for display, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _guess(name: str, among: Sequence[str]) -> str:
    close = get_close_matches(name, among, n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _flatten(f"{name}[{i}]", item)
    else:
        yield name, value
