"""Parsers of data files, one module per format; they load neither torch nor Lightning."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning_edit.datamodules.formats import (
    counterfact,
    knowedit,
    mquake,
    qaedit,
    ripple_edits,
    zsre,
)
from lightning_edit.datamodules.formats.files import read_values
from lightning_edit.edits import own_facts
from lightning_edit.edits.request_rows import list_rows
from lightning_edit.exceptions import DataError
from lightning_edit.storage.record import Note, Record, Where, describe, shorten
from lightning_edit.types import EditRequest


@dataclass(frozen=True)
class Form:
    """File format of edit requests: detection and parser.

    Args:
        title: Name of the format in reports.
        recognises: Predicate: whether an object's fields match this format.
        parse: Parser of a record: returns a request, or the requests of one case; ``None`` if the
            record holds no edit.
        strict: Whether anything unexpected is an error, as in a user's own file.
        relations: Function that returns the relation of each edit of a record, if given.
    """

    title: str
    recognises: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Record], EditRequest | list[EditRequest] | None]
    strict: bool = False
    relations: Callable[[Record], list[str | None]] = counterfact.relations


#: Formats by name, in the order of detection.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "mquake": Form("MQuAKE", mquake.recognises, mquake.parse, relations=mquake.relations),
        "rippleedits": Form("RippleEdits", ripple_edits.recognises, ripple_edits.parse),
        "zsre": Form("zsRE", zsre.recognises, zsre.parse),
        "qaedit": Form("QAEdit", qaedit.recognises, qaedit.parse),
        "knowedit": Form("KnowEdit", knowedit.recognises, knowedit.parse),
        "counterfact": Form("COUNTERFACT", counterfact.recognises, counterfact.parse),
        "jsonl": Form("own facts", own_facts.recognises, own_facts.parse, strict=True),
    }
)


@dataclass
class ParsedFile:
    """Parsed edit requests of one data file, with notes and errors.

    Args:
        file: Path of the file.
        form: Name of its format.
        records: Number of records.
        requests: The requests, in file order.
        locations: Record and line of each request, parallel to ``requests``.
        relations: Relation of each request, if the record names it, parallel to ``requests``.
        notes: Notes on skipped or odd parts of records.
        errors: Errors of single records; empty unless ``collect_errors`` was set.
    """

    file: str
    form: str
    records: int
    requests: list[EditRequest] = field(default_factory=list)
    locations: list[Where] = field(default_factory=list)
    relations: list[str | None] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)

    def note_counts(self) -> dict[str, int]:
        """Count the notes by kind."""
        return dict(Counter(note.kind for note in self.notes))


def read_requests(
    source: Any,
    form: str = "auto",
    collect_errors: bool = False,
    suffix: str | None = None,
) -> ParsedFile:
    """Parse every edit request of a data file or a table.

    Args:
        source: Path of a JSON list, JSON Lines, CSV, TSV or Parquet file; or rows: a
            ``datasets.Dataset``, a ``pandas.DataFrame``, a list of dictionaries.
        form: A name of :data:`FORMS`, or ``auto``: the one that the fields of most records have.
        collect_errors: Collect the errors of single records in ``ParsedFile.errors``, instead of
            raising the first.
        suffix: Extension of the file, if its path has lost it in a download.

    Raises:
        DataError: If the file or a record cannot be read, or two records have the same id.
    """
    is_file = isinstance(source, str | Path)
    path = str(source) if is_file else "table"
    values = read_values(Path(source), suffix) if is_file else _table_values(source)
    name = _common_form(values) if form == "auto" else form
    if name not in FORMS:
        raise DataError(f"`form` must be auto or one of {', '.join(FORMS)}; got {form!r}")
    parsed_file = ParsedFile(path, name, len(values))
    seen: dict[str, Where] = {}
    for where, value in values:
        _read_record(parsed_file, where, value, seen, collect_errors)
    if not parsed_file.requests and not parsed_file.errors:
        raise DataError(f"{path}: none of its {len(values)} records holds an edit; check the file")
    return parsed_file


def _table_values(rows: Any) -> list[tuple[Where, Any]]:
    listed = list_rows(rows)
    if not listed:
        raise DataError("the table has no rows; expected at least one edit request")
    return [(Where("table", number, unit="row"), row) for number, row in enumerate(listed, start=1)]


def _common_form(values: Sequence[tuple[Where, Any]]) -> str:
    """Return the format of most records; of two that are as common the one that stands first."""
    found = [_recognised(value) for _, value in values if isinstance(value, dict)]
    counts = Counter(name for name in found if name)
    return counts.most_common(1)[0][0] if counts else detect(values[0][1], values[0][0])


def _recognised(value: Mapping[str, Any]) -> str | None:
    return next((name for name, form in FORMS.items() if form.recognises(value)), None)


def detect(value: object, where: Where) -> str:
    """Detect the format of a record from its fields.

    Raises:
        DataError: If no format matches.
    """
    if not isinstance(value, dict):
        raise _not_object_error(where, value)
    if name := _recognised(value):
        return name
    fields = shorten(", ".join(map(str, value)), 200) or "none"
    raise DataError(
        f"{where}: expected the fields of a known form, but it has the fields {fields}. "
        "Known forms: mquake (a list `requested_rewrite`), rippleedits (`edit`, criteria), "
        "zsre (`src`, `alt`), qaedit (`prompt`, `target`, a list `locality`), "
        "knowedit (`prompt`, `target_new`, `portability`, `locality`), "
        "counterfact (`requested_rewrite`, or `prompt`, `target_new`), jsonl (`prompt`, `target`)"
    )


def _read_record(
    parsed_file: ParsedFile,
    where: Where,
    value: object,
    seen: dict[str, Where],
    collect_errors: bool,
) -> None:
    try:
        requests, relations = _parse_record(parsed_file, where, value, seen)
    except DataError as error:
        if not collect_errors:
            raise
        parsed_file.errors.append(error)
        return
    for request, relation in zip(requests, relations, strict=True):
        seen[request.id] = where
        parsed_file.requests.append(request)
        parsed_file.locations.append(where)
        parsed_file.relations.append(relation)


def _parse_record(
    parsed_file: ParsedFile, where: Where, value: object, seen: Mapping[str, Where]
) -> tuple[Sequence[EditRequest], Sequence[str | None]]:
    if not isinstance(value, dict):
        raise _not_object_error(where, value)
    form = FORMS[parsed_file.form]
    record = Record(value, where, form.strict, parsed_file.notes)
    if not form.recognises(value):
        _refuse_other_form(parsed_file.form, where, value)
    parsed = form.parse(record)
    requests = parsed if isinstance(parsed, list) else [] if parsed is None else [parsed]
    for request in requests:
        if request.id in seen:
            raise DataError(
                f"{where}: the id {request.id!r} is that of record {seen[request.id].number} "
                "already; give every record an id of its own"
            )
    return requests, form.relations(record) if requests else []


def _refuse_other_form(name: str, where: Where, value: Mapping[str, Any]) -> None:
    others = [other for other, form in FORMS.items() if form.recognises(value)]
    if others:
        raise DataError(
            f"{where}: expected a record of the form {name}, got one of the form {others[0]}; "
            "keep one form in a file, or choose the data set of that form"
        )


def _not_object_error(where: Where, value: object) -> DataError:
    return DataError(
        f"{where}: expected an object with named fields, got {describe(value)}; "
        'write each record as {"prompt": "...", ...}'
    )
