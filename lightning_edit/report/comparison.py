"""Callback metrics (drift, collapse, ripple, cost) as rows of the terminal table. Torch-free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from lightning_edit.report.names import SETS, MetricInfo, describe_measure
from lightning_edit.types import ASPECT_OF_CRITERION


@dataclass(frozen=True)
class MetricRow:
    """One metric in one row of the table.

    Args:
        name: Full metric name; ``{mode}`` stands for ``tf`` and ``gen``, one row each.
        label: Row label, where the metric's own title does not say what was measured.
    """

    name: str
    label: str = ""


def _criterion_rows(criterion: str, aspect: str) -> tuple[MetricRow, ...]:
    group = f"{aspect}.{criterion}"
    return (
        MetricRow(f"{group}/passed@{{mode}}", f"{criterion}: tests passed"),
        MetricRow(f"{group}/passed_known@{{mode}}", "  of those with known premises"),
        MetricRow(f"{group}/known@{{mode}}", "  share of tests with known premises"),
    )


#: Metrics to show, by section title; the other metrics are only in ``results.json``.
SECTIONS: Mapping[str, tuple[MetricRow, ...]] = {
    "COUNTERFACT's names": tuple(
        MetricRow(f"counterfact/{name}@tf") for name in ("ES", "PS", "NS", "S")
    ),
    "tests of several questions": tuple(
        line
        for criterion, aspect in ASPECT_OF_CRITERION.items()
        for line in _criterion_rows(criterion, aspect)
    ),
    "facts around the edits: rise of log perplexity, nats": (
        *(MetricRow(f"ripple.{name}/change@tf", words) for name, words in SETS.items()),
        MetricRow("ripple.near/p95@tf", f"{SETS['near']}: 95th percentile"),
        MetricRow("ripple.near/beyond@tf", f"{SETS['near']}: share harmed"),
        MetricRow("ripple/gie@tf", f"GIE (reconstructed): {SETS['near']}, less unrelated"),
    ),
    "earlier edits": (
        MetricRow("drift.reliability/retention@{mode}"),
        MetricRow("drift.generalization/retention@{mode}", "  their rewordings"),
        MetricRow("drift.reliability/half_life@{mode}"),
    ),
    "weights and hidden states": (
        MetricRow("drift/l1_growth"),
        MetricRow("drift/l2_growth"),
        MetricRow("drift/update_norm"),
        MetricRow("drift/hidden_cosine"),
    ),
    "language": (
        MetricRow("collapse/perplexity"),
        MetricRow("collapse/perplexity_median"),
        MetricRow("collapse/perplexity_clipped"),
        MetricRow("collapse/ngram_entropy"),
        MetricRow("collapse/first_broken"),
        MetricRow("collapse/broken"),
        MetricRow("collapse/rolled_back"),
    ),
    "edited answer where it is wrong": (
        MetricRow("overfitting.subject_specificity/leak@{mode}", "subject's other facts"),
        MetricRow("overfitting.subject_specificity/eos@tf"),
        MetricRow("overfitting.subject_only/leak@{mode}", "subject alone"),
        MetricRow("overfitting.prefix_distraction/leak@{mode}", "after a text that states it"),
        MetricRow("overfitting.multi_hop/leak@{mode}", "several hops"),
        MetricRow("overfitting.negation/leak@{mode}", "behind a not"),
    ),
    "cost": (
        MetricRow("efficiency/seconds"),
        MetricRow("efficiency/search_seconds"),
        MetricRow("efficiency/keys_seconds"),
        MetricRow("efficiency/solve_seconds"),
        MetricRow("efficiency/evaluate_seconds"),
        MetricRow("efficiency/peak_cuda_bytes"),
        MetricRow("efficiency/peak_rss_bytes"),
        MetricRow("efficiency/parameters"),
        MetricRow("efficiency/delta_bytes"),
        MetricRow("efficiency/energy@rank8", "Kept by an adapter of rank 8"),
    ),
}


def add_metric_rows(table: Table, point: Mapping[str, Any]) -> bool:
    """Add the metric rows of an evaluation point to the table.

    Args:
        table: Four columns: label, mode, before, after.
        point: An evaluation point of ``results.json``.

    Returns:
        Whether any row was added.
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


def _rows(line: MetricRow, point: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    modes = ("tf", "gen") if "{mode}" in line.name else ("",)
    info = describe_measure(line.name)
    label = f"  {line.label or info.title}"
    for mode in modes:
        name = line.name.format(mode=mode)
        if name in point["metrics"]:
            before, after = point["before"].get(name), point["metrics"][name]
            if line.name == "collapse/broken" and point["after"] != 1:
                continue  # it is a share of edits only where each edit was measured alone
            yield label, mode, _format_value(before, info), _format_value(after, info)
            label = ""


def _format_value(value: float | None, info: MetricInfo) -> str:
    """Format a value as the page does, but shares as in the table of aspects."""
    if value is None:
        return ""
    if info.share:
        return f"{min(value, 0.999) if value < 1 else value:.3f}"
    return info.show(value)


def events(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence per callback event, such as a rollback or an early stop.

    Args:
        results: The content of ``results.json``.
    """
    for row in results.get("events", ()):
        event = row["event"]
        edits = ", ".join(event["edits"][:3]) + (" …" if len(event["edits"]) > 3 else "")
        did = {
            "rollback": f"took back {edits}",
            "refuse": f"refused {edits}",
            "skip": f"left out {edits}",
        }
        what = did.get(event["action"], "ended the run")
        yield f"{row['by']} {what} after {row['after']} edits: {event['reason']}"
