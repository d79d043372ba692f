"""``lightning-edit data check``: validate data files, count probes, report errors and oddities."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from lightning_edit.cli.data_findings import Finding, findings_of
from lightning_edit.datamodules.formats import FORMS, read_requests
from lightning_edit.exceptions import DataError
from lightning_edit.report.console import VisibleConsole
from lightning_edit.types import ASPECT_OF_KIND

_MAX_ERRORS = 10


@dataclass(frozen=True)
class Report:
    """Validation report of one data file.

    Args:
        file: Path of the file.
        form: Title of its format; empty if the file could not be read at all.
        records: Number of records in the file.
        requests: Number of edit requests in it.
        probes: Number of probes by kind, the edits (``rewrite``) included.
        separators: Number of requests by their own text between prompt and answer; those without
            one (by rule, or the data module's) are not counted.
        findings: Warnings; the file can be used in spite of them.
        errors: Reasons why the file cannot be used, one sentence each.
    """

    file: str
    form: str
    records: int
    requests: int
    probes: dict[str, int]
    separators: dict[str, int]
    findings: tuple[Finding, ...]
    errors: tuple[str, ...]


def inspect(path: str, form: str = "auto") -> Report:
    """Validate one data file; errors become part of the report."""
    try:
        parsed_file = read_requests(path, form, collect_errors=True)
    except DataError as error:
        return Report(path, "", 0, 0, {}, {}, (), (str(error),))
    found = Counter(
        probe.kind for request in parsed_file.requests for probe in request.all_probes()
    )
    return Report(
        file=path,
        form=FORMS[parsed_file.form].title,
        records=parsed_file.records,
        requests=len(parsed_file.requests),
        probes={kind: found[kind] for kind in ASPECT_OF_KIND if found[kind]},
        separators=dict(
            Counter(one.separator for one in parsed_file.requests if one.separator is not None)
        ),
        findings=tuple(findings_of(parsed_file)),
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
    check.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON, JSON Lines, CSV, TSV or Parquet"
    )
    check.add_argument(
        "--format",
        choices=("auto", *FORMS),
        default="auto",
        help="format of the records (default: detected from the fields of the first one)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args(argv)
    return check_files(arguments.files, arguments.format, arguments.json)


def _show(report: Report, console: VisibleConsole, error_console: VisibleConsole) -> None:
    if report.form:
        console.print(Text(report.file, style="bold"), soft_wrap=True)
        console.print(f"{report.form}; records: {report.records:,}, edits: {report.requests:,}")
        if report.probes:
            console.print(_counts(report.probes))
        if report.separators:
            own = ", ".join(f"{text!r}: {count:,}" for text, count in report.separators.items())
            rest = report.requests - sum(report.separators.values())
            console.print(
                Text(f"separator (between prompt and answer) {own}; none of their own: {rest:,}"),
                soft_wrap=True,
            )
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
