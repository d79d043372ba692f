"""Terminal table of a run's results, printed with rich at its end. Nothing here imports torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_edit.report import comparison
from lightning_edit.report.series import leading_metric
from lightning_edit.types import ASPECT_OF_KIND, Mode

LEGEND = (
    "tf: teacher forced, each token of the answer must be the model's first choice after "
    "the ones before it. gen: the model writes by itself until it stops. answer: share of texts "
    "that start with a right answer, whatever follows; it decides what holds. em: share that is a "
    "right answer and nothing else. kept: share that is as on the unedited model. margin_sign: "
    "share where the true answer is more probable than the edit's. n: requests. docs/metrics.md"
)
_MODES: tuple[Mode, ...] = ("tf", "gen")
_ASPECTS = tuple(dict.fromkeys(ASPECT_OF_KIND.values()))
#: Measures to show of an aspect, the leading one first; the others are only in ``results.json``.
_SHOWN_MEASURES: Mapping[str, tuple[str, ...]] = {
    "locality": ("kept", "judge", "answer", "em", "margin_sign"),
    "understanding": ("judge", "answer", "em", "margin_sign"),
}
_RIGHT = ("judge", "answer", "em")
_PROTOCOL = {
    "single": "each alone on the pristine model",
    "batch": "all at once",
    "sequential": "in batches of {batch_size}, one after the other",
}


def render(results: Mapping[str, Any]) -> RenderableType:
    """Render the result tables of a run after its last edit, readable at 80 columns.

    Args:
        results: The content of ``results.json``.

    Returns:
        Tables and legend; for a run with several evaluations, the curve comes first.
    """
    points = [entry for entry in results["points"] if entry["after"] > 0] or results["points"]
    parts: list[RenderableType] = [_curve_table(points)] if len(points) > 1 else []
    if points:
        parts.append(_aspect_table(results, points[-1]))
        table = _callback_table(points[-1])
        parts += [] if table is None else [table]
    parts += [Text(sentence, style="yellow") for sentence in comparison.events(results)]
    return Group(*parts, Text(LEGEND, style="dim"))


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _aspect_table(results: Mapping[str, Any], point: Mapping[str, Any]) -> Table:
    table = _table(_title(results, point))
    table.add_column("", no_wrap=True)
    table.add_column("measure")
    for mode in _MODES:
        table.add_column(f"{mode}\nbefore", justify="right")
        table.add_column(f"{mode}\nafter", justify="right", style="bold")
    table.add_column("n", justify="right")
    for label, group, measure in _rows(point):
        cells = []
        for mode in _MODES:
            name = f"{group}/{measure}@{mode}"
            cells += [
                _format_share(point["before"].get(name)),
                _format_share(point["metrics"].get(name)),
            ]
        table.add_row(label, measure, *cells, _number(point["counts"], group, measure))
    return table


def _number(counts: Mapping[str, int], group: str, measure: str) -> str:
    """Return how many requests a row's values are means over."""
    own = [counts[name] for mode in _MODES if (name := f"{group}/{measure}@{mode}/n") in counts]
    return str(own[0] if own else counts.get(f"{group}/n", ""))


def _callback_table(point: Mapping[str, Any]) -> Table | None:
    table = _table("Beside the probes")
    for header, style in (("", None), ("", None), ("before", None), ("after", "bold")):
        # At 80 columns names are folded; a number that is cut would be another one.
        justify: JustifyMethod = "right" if header else "left"
        table.add_column(header, justify=justify, style=style, no_wrap=bool(header))
    return table if comparison.add_metric_rows(table, point) else None


def _rows(point: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield label, group and measure of each row: every aspect, then its kinds if several."""
    numbers = [name.removesuffix("/n") for name in point["counts"] if name.endswith("/n")]
    groups = [name for name in numbers if "/" not in name]  # the others are of one measure
    for aspect in _ASPECTS:
        if aspect not in groups:
            continue
        kinds = [group for group in groups if group.startswith(f"{aspect}.")]
        only = f" ({kinds[0].partition('.')[2]})" if len(kinds) == 1 else ""
        yield from _group_measures(point, aspect, aspect + only)
        for kind in kinds if len(kinds) > 1 else ():
            yield from _group_measures(point, kind, f"  {kind.partition('.')[2]}")


def _group_measures(
    point: Mapping[str, Any], group: str, label: str
) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of a group's measured measures; only the first row has the label."""
    listed = [
        measure
        for measure in _SHOWN_MEASURES.get(group.partition(".")[0], _RIGHT)
        if any(f"{group}/{measure}@{mode}" in point["metrics"] for mode in _MODES)
    ]
    for number, measure in enumerate(listed or ["em"]):
        yield "" if number else label, group, measure


def _curve_table(points: list[Mapping[str, Any]]) -> Table:
    table = _table("After each evaluation")
    table.add_column("edits", justify="right")
    table.add_column("")
    aspects = [a for a in _ASPECTS if any(f"{a}/n" in entry["counts"] for entry in points)]
    measured = {name for entry in points for name in entry["metrics"]}
    leading = {
        (aspect, mode): leading_metric(aspect, mode, measured)
        for aspect in aspects
        for mode in _MODES
    }
    for aspect in aspects:
        named = [name for mode in _MODES if (name := leading[aspect, mode]) is not None]
        measures = dict.fromkeys(name.rpartition("/")[2].partition("@")[0] for name in named)
        table.add_column(f"{aspect}\n{', '.join(measures) or 'em'}", justify="right")
    for entry in points:
        for number, mode in enumerate(_MODES):
            names = [leading[aspect, mode] for aspect in aspects]
            cells = [_format_share(entry["metrics"].get(name)) for name in names]
            table.add_row("" if number else str(entry["after"]), mode, *cells)
    return table


def _title(results: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    edits = point["counts"].get("reliability/n", point["after"])
    noun = "edit" if edits == 1 else "edits"
    how = _PROTOCOL[results["protocol"]].format(batch_size=results["batch_size"])
    if results["protocol"] == "sequential" and results["batch_size"] == 1:
        how = "one after the other"
    model = results["language_model"]["name"].rstrip("/").rpartition("/")[2]
    return f"{results['editor']['class']} on {model}: {edits} {noun}, {how}"


def _format_share(value: float | None) -> str:
    """Format a share with three digits that never rounds up to 1."""
    if value is None:
        return "–"
    return f"{min(value, 0.999) if value < 1 else value:.3f}"
