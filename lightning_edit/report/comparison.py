"""What callbacks measured beside the probes, as rows of the terminal's table. Torch-free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from lightning_edit.report.names import SETS, About, describe_measure
from lightning_edit.types import ASPECT_OF_CRITERION


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Args:
        name: The number; ``{mode}`` stands for ``tf`` and ``gen``, side by side.
        label: What it was measured of, where the words of the number do not say so.
    """

    name: str
    label: str = ""


def _tests(criterion: str, aspect: str) -> tuple[Line, ...]:
    group = f"{aspect}.{criterion}"
    return (
        Line(f"{group}/passed@{{mode}}", f"{criterion}: tests passed"),
        Line(f"{group}/passed_known@{{mode}}", "  of those with known premises"),
        Line(f"{group}/known@{{mode}}", "  share of tests with known premises"),
    )


#: By title, what is shown; the other numbers stand in ``results.json``.
SECTIONS: Mapping[str, tuple[Line, ...]] = {
    "COUNTERFACT's names": tuple(
        Line(f"counterfact/{name}@tf") for name in ("ES", "PS", "NS", "S")
    ),
    "tests of several questions": tuple(
        line
        for criterion, aspect in ASPECT_OF_CRITERION.items()
        for line in _tests(criterion, aspect)
    ),
    "facts around the edits: rise of log perplexity, nats": (
        *(Line(f"ripple.{name}/change@tf", words) for name, words in SETS.items()),
        Line("ripple.near/p95@tf", f"{SETS['near']}: 95th percentile"),
        Line("ripple.near/beyond@tf", f"{SETS['near']}: share harmed"),
        Line("ripple/gie@tf", f"GIE (reconstructed): {SETS['near']}, less unrelated"),
    ),
    "earlier edits": (
        Line("drift.reliability/retention@{mode}"),
        Line("drift.generalization/retention@{mode}", "  their rewordings"),
        Line("drift.reliability/half_life@{mode}"),
    ),
    "weights and hidden states": (
        Line("drift/l1_growth"),
        Line("drift/l2_growth"),
        Line("drift/update_norm"),
        Line("drift/hidden_cosine"),
    ),
    "language": (
        Line("collapse/perplexity"),
        Line("collapse/perplexity_median"),
        Line("collapse/perplexity_clipped"),
        Line("collapse/ngram_entropy"),
        Line("collapse/first_broken"),
        Line("collapse/broken"),
        Line("collapse/rolled_back"),
    ),
    "edited answer where it is wrong": (
        Line("overfitting.subject_specificity/leak@{mode}", "subject's other facts"),
        Line("overfitting.subject_specificity/eos@tf"),
        Line("overfitting.subject_only/leak@{mode}", "subject alone"),
        Line("overfitting.prefix_distraction/leak@{mode}", "behind a text that states it"),
        Line("overfitting.multi_hop/leak@{mode}", "several hops"),
    ),
    "cost": (
        Line("efficiency/seconds"),
        Line("efficiency/search_seconds"),
        Line("efficiency/keys_seconds"),
        Line("efficiency/solve_seconds"),
        Line("efficiency/evaluate_seconds"),
        Line("efficiency/peak_cuda_bytes"),
        Line("efficiency/peak_rss_bytes"),
        Line("efficiency/parameters"),
        Line("efficiency/delta_bytes"),
        Line("efficiency/energy@rank8", "Kept by an adapter of rank 8"),
    ),
}


def fill(table: Table, point: Mapping[str, Any]) -> bool:
    """Add the rows of a point.

    Args:
        table: Four columns: label, mode, before, after.
        point: An evaluation point of ``results.json``.

    Returns:
        Whether there was any.
    """
    filled = False
    for title, lines in SECTIONS.items():
        rows = [row for line in lines for row in _rows(line, point)]
        if rows:
            table.add_row(Text(title, style="italic"))
        for row in rows:
            table.add_row(*row)
        filled |= bool(rows)
    return filled


def _rows(line: Line, point: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    modes = ("tf", "gen") if "{mode}" in line.name else ("",)
    about = describe_measure(line.name)
    label = f"  {line.label or about.title}"
    for mode in modes:
        name = line.name.format(mode=mode)
        if name in point["metrics"]:
            before, after = point["before"].get(name), point["metrics"][name]
            if line.name == "collapse/broken" and point["after"] != 1:
                continue  # a share of edits only where each was measured alone
            yield label, mode, _written(before, about), _written(after, about)
            label = ""


def _written(value: float | None, about: About) -> str:
    """Write a number as the page does, but shares as in the table of the probes."""
    if value is None:
        return ""
    if about.share:
        return f"{min(value, 0.999) if value < 1 else value:.3f}"
    return about.show(value)


def events(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each thing that a callback did to the run.

    Args:
        results: A record as in ``results.json``.
    """
    for row in results.get("events", ()):
        event = row["event"]
        edits = ", ".join(event["edits"][:3]) + (" …" if len(event["edits"]) > 3 else "")
        what = f"took back {edits}" if event["action"] == "rollback" else "ended the run"
        yield f"{row['by']} {what} after {row['after']} edits: {event['reason']}"
