"""``lightning-edit data check``: what a data file holds, and what in it deserves a look."""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_edit.datamodules.formats import FORMS, Reading, read_requests
from lightning_edit.datamodules.formats.record import shorten
from lightning_edit.exceptions import DataError
from lightning_edit.types import ASPECT_OF_KIND, EditRequest

_SHOWN = 3
_ERRORS = 10


# Which records say what of one fact: (relation, subject) or ("", prompt), then the target.
_Facts = dict[tuple[str, str], dict[str, list[tuple[int, EditRequest]]]]


@dataclass(frozen=True)
class Finding:
    """One kind of oddity in a file.

    Args:
        what: The oddity.
        count: How often it occurs.
        examples: The first few, each with its record.
    """

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was found in one file.

    Args:
        file: The file.
        form: Title of its form; empty where the file could not be read at all.
        records: Records in the file.
        requests: Edits among them.
        probes: Number of probes by kind, the edits (``rewrite``) included.
        findings: Oddities that do not keep the file from being used.
        errors: What keeps it from being used, one sentence each.
    """

    file: str
    form: str
    records: int
    requests: int
    probes: dict[str, int]
    findings: tuple[Finding, ...]
    errors: tuple[str, ...]


def inspect(path: str, form: str = "auto") -> Report:
    """Read one file and report on it; errors are part of the report."""
    try:
        reading = read_requests(path, form, collect_errors=True)
    except DataError as error:
        return Report(path, "", 0, 0, {}, (), (str(error),))
    found = Counter(probe.kind for request in reading.requests for probe in request.all_probes())
    return Report(
        file=path,
        form=FORMS[reading.form].title,
        records=reading.records,
        requests=len(reading.requests),
        probes={kind: found[kind] for kind in ASPECT_OF_KIND if found[kind]},
        findings=tuple(_findings(reading)),
        errors=tuple(str(error) for error in reading.errors),
    )


def check_files(paths: Sequence[str], form: str = "auto", as_json: bool = False) -> int:
    """Report on files on the terminal, or as one JSON object.

    Returns:
        Exit status: 0 if every file can be used, 2 if one cannot.
    """
    reports = [inspect(path, form) for path in paths]
    broken = any(report.errors for report in reports)
    if as_json:
        content = {"ok": not broken, "files": [asdict(report) for report in reports]}
        sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    else:
        console, complaints = Console(), Console(stderr=True)
        for report in reports:
            _show(report, console, complaints)
    return 2 if broken else 0


def main(argv: Sequence[str]) -> int:
    """Run ``lightning-edit data`` with the arguments after its name; return the exit status."""
    parser = argparse.ArgumentParser(prog="lightning-edit data", description="Look at data files.")
    verbs = parser.add_subparsers(required=True, metavar="check")
    text = "count what data files hold, and report what is wrong or odd in them"
    check = verbs.add_parser("check", help=text, description=text)
    check.add_argument("files", nargs="+", metavar="FILE", help="JSON list or JSON Lines")
    check.add_argument(
        "--format",
        choices=("auto", *FORMS),
        default="auto",
        help="form of the records (default: told from the fields of the first one)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args(argv)
    return check_files(arguments.files, arguments.format, arguments.json)


def _findings(reading: Reading) -> Iterable[Finding]:
    prompts: _Facts = defaultdict(lambda: defaultdict(list))
    same = []
    for request, where, relation in zip(
        reading.requests, reading.wheres, reading.relations, strict=True
    ):
        entry = (where.number, request)
        prompts["", _plain(request.prompt)][request.target].append(entry)
        if relation and request.subject:
            prompts[relation, _plain(request.subject)][request.target].append(entry)
        if request.old_target is not None and _plain(request.target) == _plain(request.old_target):
            same.append(f"record {where.number}: {request.target!r}")
    yield from _finding("conflicting edits (one fact, several targets)", _conflicts(prompts))
    yield from _finding("duplicate prompts (with one target)", _duplicates(prompts))
    yield from _finding("target equal to the old target", same)
    for aspect in ("generalization", "locality"):
        have = [any(p.aspect == aspect for p in r.all_probes()) for r in reading.requests]
        lack = [where.number for where, has in zip(reading.wheres, have, strict=True) if not has]
        if len(lack) < len(have):
            yield from _finding(f"no {aspect} probe", [f"record {number}" for number in lack])
    by_kind: dict[str, list[str]] = defaultdict(list)
    for note in reading.notes:
        by_kind[note.kind].append(f"record {note.number}: {note.detail}")
    for kind, details in by_kind.items():
        yield from _finding(kind, details)


def _finding(what: str, details: Sequence[str]) -> Iterable[Finding]:
    if details:
        yield Finding(what, len(details), tuple(shorten(text, 160) for text in details[:_SHOWN]))


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
        found.setdefault(records, f"records {_listed(records)}: {fact!r} → {answers}")
    return list(found.values())


def _duplicates(facts: _Facts) -> list[str]:
    return [
        f"records {_listed([number for number, _ in entries])}: {entries[0][1].prompt!r}"
        for (relation, _), targets in facts.items()
        for entries in targets.values()
        if not relation and len(entries) > 1
    ]


def _number(entry: tuple[int, EditRequest]) -> int:
    return entry[0]


def _listed(numbers: Sequence[int]) -> str:
    more = f" +{len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(map(str, numbers[:_SHOWN])) + more


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _show(report: Report, console: Console, complaints: Console) -> None:
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
    for error in report.errors[:_ERRORS]:
        complaints.print(Text.assemble(("error: ", "bold red"), error), soft_wrap=True)
    if len(report.errors) > _ERRORS:
        complaints.print(f"+{len(report.errors) - _ERRORS:,} more errors")


def _counts(probes: Mapping[str, int]) -> Table:
    table = Table("aspect", "kind of probe")
    table.add_column("probes", justify="right")
    last = ""
    for kind, count in probes.items():
        aspect = ASPECT_OF_KIND[kind]
        table.add_row("" if aspect == last else aspect, kind, f"{count:,}")
        last = aspect
    return table
