"""``lightning-edit data check``: validate data files, count probes, report errors and oddities."""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from lightning_edit.datamodules.formats import FORMS, ParsedFile, read_requests
from lightning_edit.exceptions import DataError
from lightning_edit.report.console import VisibleConsole
from lightning_edit.storage.record import shorten
from lightning_edit.types import ASPECT_OF_KIND, EditRequest

_MAX_EXAMPLES = 3
_MAX_ERRORS = 10


# Records by fact and by target; a fact is (relation, subject) or ("", prompt).
_Facts = dict[tuple[str, str], dict[str, list[tuple[int, EditRequest]]]]


@dataclass(frozen=True)
class Finding:
    """Warning about one kind of oddity in a data file.

    Args:
        what: The oddity.
        count: Number of occurrences.
        examples: The first few, each with its record number.
    """

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Validation report of one data file.

    Args:
        file: Path of the file.
        form: Title of its format; empty if the file could not be read at all.
        records: Number of records in the file.
        requests: Number of edit requests in it.
        probes: Number of probes by kind, the edits (``rewrite``) included.
        findings: Warnings; the file can be used in spite of them.
        errors: Reasons why the file cannot be used, one sentence each.
    """

    file: str
    form: str
    records: int
    requests: int
    probes: dict[str, int]
    findings: tuple[Finding, ...]
    errors: tuple[str, ...]


def inspect(path: str, form: str = "auto") -> Report:
    """Validate one data file; errors become part of the report."""
    try:
        parsed_file = read_requests(path, form, collect_errors=True)
    except DataError as error:
        return Report(path, "", 0, 0, {}, (), (str(error),))
    found = Counter(
        probe.kind for request in parsed_file.requests for probe in request.all_probes()
    )
    return Report(
        file=path,
        form=FORMS[parsed_file.form].title,
        records=parsed_file.records,
        requests=len(parsed_file.requests),
        probes={kind: found[kind] for kind in ASPECT_OF_KIND if found[kind]},
        findings=tuple(_findings(parsed_file)),
        errors=tuple(str(error) for error in parsed_file.errors),
    )


def check_files(paths: Sequence[str], form: str = "auto", as_json: bool = False) -> int:
    """Validate data files; print the reports to the terminal or as one JSON object.

    Returns:
        Exit status: 0 if every file can be used, 2 otherwise.
    """
    reports = [inspect(path, form) for path in paths]
    broken = any(report.errors for report in reports)
    if as_json:
        content = {"ok": not broken, "files": [asdict(report) for report in reports]}
        sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    else:
        console, error_console = VisibleConsole(), VisibleConsole(stderr=True)
        for report in reports:
            _show(report, console, error_console)
    return 2 if broken else 0


def main(argv: Sequence[str]) -> int:
    """Run ``lightning-edit data`` with the arguments after its name; return the exit status."""
    parser = argparse.ArgumentParser(prog="lightning-edit data", description="Inspect data files.")
    verbs = parser.add_subparsers(required=True, metavar="check")
    text = "count records and probes of data files, and report errors and oddities"
    check = verbs.add_parser("check", help=text, description=text)
    check.add_argument("files", nargs="+", metavar="FILE", help="JSON list or JSON Lines")
    check.add_argument(
        "--format",
        choices=("auto", *FORMS),
        default="auto",
        help="format of the records (default: detected from the fields of the first one)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args(argv)
    return check_files(arguments.files, arguments.format, arguments.json)


def _findings(parsed_file: ParsedFile) -> Iterable[Finding]:
    prompts: _Facts = defaultdict(lambda: defaultdict(list))
    same = []
    for request, where, relation in zip(
        parsed_file.requests, parsed_file.locations, parsed_file.relations, strict=True
    ):
        entry = (where.number, request)
        prompts["", _normalise(request.prompt)][request.target].append(entry)
        if relation and request.subject:
            prompts[relation, _normalise(request.subject)][request.target].append(entry)
        if request.old_target is not None and _normalise(request.target) == _normalise(
            request.old_target
        ):
            same.append(f"record {where.number}: {request.target!r}")
    yield from _make_finding("conflicting edits (one fact, several targets)", _conflicts(prompts))
    yield from _make_finding("duplicate prompts (with one target)", _duplicates(prompts))
    yield from _make_finding("target equal to the old target", same)
    for aspect in ("generalization", "locality"):
        have = [any(p.aspect == aspect for p in r.all_probes()) for r in parsed_file.requests]
        missing = [
            where.number for where, has in zip(parsed_file.locations, have, strict=True) if not has
        ]
        if len(missing) < len(have):
            yield from _make_finding(
                f"no {aspect} probe", [f"record {number}" for number in missing]
            )
    by_kind: dict[str, list[str]] = defaultdict(list)
    for note in parsed_file.notes:
        by_kind[note.kind].append(f"record {note.number}: {note.detail}")
    for kind, details in by_kind.items():
        yield from _make_finding(kind, details)


def _make_finding(what: str, details: Sequence[str]) -> Iterable[Finding]:
    if details:
        yield Finding(
            what, len(details), tuple(shorten(text, 160) for text in details[:_MAX_EXAMPLES])
        )


def _conflicts(facts: _Facts) -> list[str]:
    # Two records with one prompt also share subject and relation; report a group of records once.
    found: dict[tuple[int, ...], str] = {}
    for (relation, _), targets in facts.items():
        if len(targets) < 2:
            continue
        entries = sorted((entry for group in targets.values() for entry in group), key=_number)
        records = tuple(number for number, _ in entries)
        first = entries[0][1]
        fact = f"{first.subject} ({relation})" if relation else first.prompt
        answers = ", ".join(map(repr, targets))
        found.setdefault(records, f"records {_join_numbers(records)}: {fact!r} → {answers}")
    return list(found.values())


def _duplicates(facts: _Facts) -> list[str]:
    return [
        f"records {_join_numbers([number for number, _ in entries])}: {entries[0][1].prompt!r}"
        for (relation, _), targets in facts.items()
        for entries in targets.values()
        if not relation and len(entries) > 1
    ]


def _number(entry: tuple[int, EditRequest]) -> int:
    return entry[0]


def _join_numbers(numbers: Sequence[int]) -> str:
    more = f" +{len(numbers) - _MAX_EXAMPLES} more" if len(numbers) > _MAX_EXAMPLES else ""
    return ", ".join(map(str, numbers[:_MAX_EXAMPLES])) + more


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _show(report: Report, console: VisibleConsole, error_console: VisibleConsole) -> None:
    if report.form:
        console.print(Text(report.file, style="bold"), soft_wrap=True)
        console.print(f"{report.form}; records: {report.records:,}, edits: {report.requests:,}")
        if report.probes:
            console.print(_counts(report.probes))
    for finding in report.findings:
        console.print(Text(f"{finding.count:,} × {finding.what}", style="yellow"))
        for example in finding.examples:
            console.print(Text(f"    {example}"), soft_wrap=True)
        if finding.count > len(finding.examples):
            console.print(f"    +{finding.count - len(finding.examples):,} more")
    for error in report.errors[:_MAX_ERRORS]:
        error_console.print(Text.assemble(("error: ", "bold red"), error), soft_wrap=True)
    if len(report.errors) > _MAX_ERRORS:
        error_console.print(f"+{len(report.errors) - _MAX_ERRORS:,} more errors")


def _counts(probes: Mapping[str, int]) -> Table:
    table = Table("aspect", "kind of probe")
    table.add_column("probes", justify="right")
    last = ""
    for kind, count in probes.items():
        aspect = ASPECT_OF_KIND[kind]
        table.add_row("" if aspect == last else aspect, kind, f"{count:,}")
        last = aspect
    return table
