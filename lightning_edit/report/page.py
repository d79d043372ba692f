"""Self-contained HTML report of one run, or of several runs side by side.

The page embeds its style, its script, Bokeh's script from the installed package, and the data. It
makes no network requests, and a content security policy in it blocks every other script. The
template escapes all text; the data for the scripts is compressed, see
:mod:`lightning_edit.report.payload`.
"""

import base64
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_edit.exceptions import ReportError
from lightning_edit.report.cases import read_edits
from lightning_edit.report.payload import RunCases, pack, pack_to_fit
from lightning_edit.report.runs import Run, as_runs, comparable
from lightning_edit.report.series import aspects, modes, percent, seconds_per_edit
from lightning_edit.report.story import QUESTION, facts_about, summarise_run, warnings
from lightning_edit.storage.atomic import write_atomic
from lightning_edit.types import Mode

MAX_BYTES = 3_000_000
"""Size limit of a page; cases that do not fit are only in ``cases.jsonl``."""
NEEDS = ("bokeh", "jinja2", "networkx")
INSTALL = 'pip install "lightning-edit[report]"'
#: Runs whose metrics are all listed; more would fill the page with tables.
_MAX_LISTED_RUNS = 10
#: Sections that are open on a phone; the others are opened by a tap.
_OPEN_ON_A_PHONE = ("aspects", "tradeoff", "curves")
#: Cards of each run on a page of several runs.
_CARDS_PER_RUN = 3


@dataclass(frozen=True)
class Script:
    """An inline script of the page, with its hash for the content security policy.

    Args:
        text: Its JavaScript source.
    """

    text: str

    @property
    def digest(self) -> str:
        """The SHA-256 source expression for the content security policy."""
        hashed = base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()
        return f"'sha256-{hashed}'"


def missing() -> list[str]:
    """Return the optional packages that the page needs but that are not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def write_page(runs: Sequence[Path], out: Path) -> Path:
    """Write the HTML page of one or several runs.

    Args:
        runs: Folders of finished runs.
        out: The HTML file; it is written atomically.

    Returns:
        ``out``.

    Raises:
        DataError: If a folder contains no finished run.
        ReportError: If a package is missing, or the file cannot be written.
    """
    if absent := missing():
        raise ReportError(f"the page needs {' and '.join(absent)}; install with: {INSTALL}")
    listed = as_runs(list(runs))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate cannot be encoded as UTF-8; a question mark replaces it.
        write_atomic(out, _render(listed, out).encode("utf-8", "replace"))
    except OSError as error:
        raise ReportError(
            f"could not write {out}: {error.strerror or error}; give another file with --out"
        ) from error
    return out


def _render(runs: Sequence[Run], out: Path) -> str:
    # Bokeh and Jinja are optional dependencies (the extra `report`).
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from lightning_edit.report.attribution_section import read_attributions
    from lightning_edit.report.ripple import read_ripples
    from lightning_edit.report.sections import sections

    cases = [RunCases(run, read_edits(run.folder)) for run in runs]
    ripples = [read_ripples(run.folder) for run in runs]
    drawn = sections(runs, ripples, [read_attributions(run.folder) for run in runs])
    stories = [
        summarise_run(e.run, e.edits, *([_CARDS_PER_RUN] if len(runs) > 1 else [])) for e in cases
    ]
    mode: Mode = next(iter(modes(runs)), "gen")
    shown = list(dict.fromkeys(value.aspect for run in runs for value in aspects(run, mode)))
    charts = {chart.id: chart.item() for section in drawn for chart in section.charts}
    cards = [card for section in drawn for card in section.multiples]
    charts |= {chart.id: chart.item() for card in cards for chart in card.charts}
    graphs = [graph for section in drawn for graph in section.items]
    scripts = [Script(_bokeh_script()), Script(_asset("page.js"))]
    values: dict[str, Any] = {
        "title": _title(runs),
        "runs": runs,
        "stories": stories,
        "aspects": shown,
        "mode": mode,
        "rows": [_row(run, mode, shown) for run in runs],
        "differ": comparable(runs),
        "warnings": [warning for run in runs for warning in warnings(run)],
        "sections": drawn,
        "first": _OPEN_ON_A_PHONE,
        "questions": QUESTION,
        "about": [(run.label, facts_about(run)) for run in runs],
        "every": [(run.label, _all_metrics(run)) for run in runs[:_MAX_LISTED_RUNS]],
        "sources": [(run.label, _link(run.folder / "cases.jsonl", out)) for run in runs],
        "asked": sum(len(edit.cases) for entry in cases for edit in entry.edits),
        "style": _asset("page.css"),
        "scripts": scripts,
        "policy": " ".join(script.digest for script in scripts),
        "charts": pack({"charts": charts, "graphs": graphs}),
    }
    environment = Environment(
        loader=PackageLoader("lightning_edit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    most = max((len(entry.edits) for entry in cases), default=0)
    bare = template.render(values | {"cases": "", "kept": most, "cut": True})
    packed, kept = pack_to_fit(cases, MAX_BYTES - len(bare.encode("utf-8", "replace")) - 1000)
    return template.render(values | {"cases": packed, "kept": kept, "cut": kept < most})


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].editor} on {runs[0].model}"
    editors = list(dict.fromkeys(run.editor for run in runs))
    if 1 < len(editors) <= 4:
        return f"{', '.join(editors[:-1])} and {editors[-1]} side by side"
    return f"{len(runs)} runs side by side"


def _row(run: Run, mode: Mode, shown: Sequence[str]) -> dict[str, Any]:
    """Return a run's row in the table of runs."""
    values = {value.aspect: value.after for value in aspects(run, mode)}
    return {
        "run": run,
        "shares": [values.get(aspect) for aspect in shown],
        "percents": [percent(values.get(aspect, 0.0)) for aspect in shown],
        "seconds": seconds_per_edit(run),
    }


def _all_metrics(run: Run) -> list[tuple[str, float | None, float]]:
    point = run.last
    if point is None:
        return []
    return [(name, point["before"].get(name), value) for name, value in point["metrics"].items()]


def _link(file: Path, out: Path) -> str:
    """Return a relative URL from the page to a file, so that both can be moved together."""
    try:
        path = os.path.relpath(file.resolve(), out.resolve().parent)
    except ValueError:  # Windows: the file is on another drive
        return file.resolve().as_uri()
    return quote(Path(path).as_posix())


def _asset(name: str) -> str:
    return (files("lightning_edit.report") / "templates" / name).read_text(encoding="utf-8")


def _bokeh_script() -> str:
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
