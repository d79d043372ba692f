"""Typed fields of one record, with errors that say where, what was expected, and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_edit.exceptions import DataError

EMPTY_PROBE = "empty prompt, probe left out"


@dataclass(frozen=True)
class Where:
    """Where a record stands.

    Args:
        file: Name of the file, as the user gave it.
        number: Which record of the file, from 1.
        line: Line of a JSON Lines file, from 1; ``None`` in a JSON list.
    """

    file: str
    number: int
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.file}, record {self.number}{line}"


@dataclass(frozen=True)
class Note:
    """Something about a record that is worth a warning and did not keep it from being read.

    Args:
        kind: What it is, in the words of the report; notes of one kind are counted together.
        number: Which record, from 1.
        detail: What it is about.
    """

    kind: str
    number: int
    detail: str


@dataclass(frozen=True)
class Record:
    """One JSON object of a data file, and how to read typed fields out of it.

    Args:
        values: The object.
        where: Where it stands.
        strict: A user's own file: what is wrong is an error. Otherwise the file is somebody else's
            benchmark: an empty probe is left out with a note, and a number is a permitted answer.
        notes: Collects what was left out or looks odd.
        path: Dotted name of this object inside the record, with a trailing dot; empty at the top.
    """

    values: Mapping[str, Any]
    where: Where
    strict: bool = False
    notes: list[Note] = field(default_factory=list)
    path: str = ""

    def has(self, name: str) -> bool:
        """Say whether a field is there and not null."""
        return self.values.get(name) is not None

    def note(self, kind: str, detail: str) -> None:
        """Remember something for the report."""
        self.notes.append(Note(kind, self.where.number, detail))

    def text(self, *names: str) -> str:
        """Return the first of these fields that is there: non-empty text without outer spaces."""
        for name in names:
            if name in self.values:
                text = self._text(name, self.values[name])
                if not text:
                    self.fail(name, "text", self.values[name], "fill it in, or remove the record")
                return text
        raise self._missing(names)

    def optional_text(self, name: str) -> str | None:
        """Return a text field; ``None`` where it is absent, null or empty."""
        return (self._text(name, self.values[name]) or None) if self.has(name) else None

    def probe_text(self, name: str) -> str | None:
        """Return the prompt of a probe; the field must be there, an empty one is noted."""
        if name not in self.values:
            raise self._missing((name,))
        text = self.optional_text(name)
        if text is None:
            self.note(EMPTY_PROBE, f"`{self.path}{name}`")
        return text

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, empty where absent; a benchmark may give one bare text."""
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
        return tuple(text for _, text in found if text)

    def answers(self, name: str) -> tuple[str, ...]:
        """Return accepted answers: a text, a list of them, or lists of aliases in a list.

        Nested lists are flattened in order and repetitions removed. The result is empty where there
        is no answer, which the caller turns into an error or a note.
        """
        if not self.has(name):
            return ()
        found = [(at, self._answer(at, value)) for at, value in _flatten(name, self.values[name])]
        empty = [at for at, text in found if not text]
        if empty and self.strict:
            self.fail(empty[0], "text", "", "fill it in, or remove it")
        if empty and len(empty) < len(found):
            self.note("empty alias, left out", f"`{self.path}{empty[0]}`")
        return tuple(dict.fromkeys(text for _, text in found if text))

    def child(self, name: str) -> "Record":
        """Return an object inside this one."""
        if name not in self.values:
            raise self._missing((name,))
        return self._object(name, self.values[name])

    def children(self, name: str) -> list["Record"]:
        """Return a list of objects; empty where it is absent or null."""
        items = self.items(name, "a list of objects")
        return [self._object(f"{name}[{i}]", item) for i, item in enumerate(items)]

    def items(self, name: str, expected: str) -> list[Any]:
        """Return a list of anything; empty where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, expected, value, "put it in a list: [...]")
        return value

    def allow(self, names: Sequence[str]) -> None:
        """Refuse fields that are not in ``names``, guessing what was meant."""
        for name in self.values:
            if name not in names:
                raise DataError(
                    f"{self.where}: unknown field `{self.path}{name}`; remove or rename it."
                    f"{_guess(name, names)} The fields are {', '.join(names)}"
                )

    def fail(self, name: str, expected: str, got: object, remedy: str) -> NoReturn:
        """Raise the error of one field."""
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
    """Name a JSON value for an error message, short."""
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
    """Cut a text for display."""
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
