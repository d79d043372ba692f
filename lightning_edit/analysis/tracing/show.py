"""Output of causal tracing: table, heat maps and ``trace.json``. Nothing here imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lightning_edit.analysis.tracing.roles import LAST_SUBJECT, Average, average
from lightning_edit.exceptions import ConfigError
from lightning_edit.report import sweep_plots
from lightning_edit.report.console import VisibleConsole
from lightning_edit.storage.run_folder import RunFolder

_NAMES = {"hidden": "hidden state", "mlp": "MLP", "attention": "attention"}


def finish(
    record: Mapping[str, Any], rows: list[dict[str, Any]], folder: Path, formats: Sequence[str]
) -> None:
    """Write the averages to ``trace.json``, draw the heat maps, print the table.

    Args:
        record: Options and counts of the trace.
        rows: Rows of the traced facts.
        folder: The run folder.
        formats: File formats of the figures.

    Raises:
        ConfigError: If the model knows none of the facts.
    """
    asked, name = record["asked"], str(record["language_model"]["name"]).rstrip("/")
    model = name.rpartition("/")[2]
    if not rows:
        raise ConfigError(
            f"{model} predicts none of the {asked} facts, so there is nothing to trace; what it "
            f"predicts instead is in {folder}/trace.jsonl. Try other --facts"
            + ("" if record["language_model"]["bos"] else ", or --lm_bos true")
        )
    averages = {kind: average(rows, kind) for kind in rows[0]["effects"]}
    clean, corrupted = (
        sum(row[name] for row in rows) / len(rows) for name in ("clean", "corrupted")
    )
    totals = {"clean": round(clean, 6), "corrupted": round(corrupted, 6)}
    RunFolder(folder).write_json(
        folder / "trace.json",
        {"schema": 1, **record, "probability": totals}
        | {"average_indirect_effects": {kind: one.to_row() for kind, one in averages.items()}},
    )
    console = VisibleConsole(highlight=False)
    left, impossible = asked - len(rows), record["impossible"]
    console.print(
        f"Causal tracing of {model}: {len(rows)} facts"
        + (
            f"; {left} of {asked} left out, because the model predicts something else"
            if left
            else ""
        )
        + (f" (or, {impossible}, because they cannot be tokenised)" if impossible else "")
        + f".\nProbability of the answer: {clean:.3f}, with noise on the subject {corrupted:.3f}; "
        f"total effect {clean - corrupted:.3f}.\n",
        soft_wrap=True,
    )
    console.print(_table(averages, record["window"]))
    files = [folder / "trace.json"]
    if sweep_plots.available():
        for kind, one in averages.items():
            files += _draw(kind, one, record, len(rows), model, folder, formats)
    console.print("Files: " + ", ".join(map(str, files)), soft_wrap=True, markup=False)
    console.print(
        "Tracing does not show which layers an editor should edit; for that, run "
        "lightning-edit sweep (docs/layers.md).",
        soft_wrap=True,
    )
    if clean - corrupted < 0.05:
        console.print(
            "The noise hardly lowers the probability of the answers, so the effects say little; "
            "raise --noise.",
            soft_wrap=True,
        )


def _table(averages: Mapping[str, Average], width: int) -> Table:
    table = Table(
        title="Largest average indirect effect (± standard error over facts)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("restored", "effect", "token", "layer", "at last subject\ntoken", "layer"):
        right = name not in ("restored", "token")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "token")
    for kind, one in averages.items():
        role, layer = one.peak()
        _, own = one.peak(LAST_SUBJECT)
        windowed = f", {width} blocks" if kind != "hidden" and width > 1 else ""
        table.add_row(
            _NAMES[kind] + windowed,
            _value(one, role, layer),
            role,
            str(layer),
            _value(one, LAST_SUBJECT, own),
            str(own),
        )
    return table


def _value(one: Average, role: str, layer: int) -> str:
    return f"{one.effects[role][layer]:.3f} ±{one.errors[role][layer]:.3f}"


def _draw(
    kind: str,
    one: Average,
    record: Mapping[str, Any],
    facts: int,
    model: str,
    folder: Path,
    formats: Sequence[str],
) -> list[Path]:
    windowed = kind != "hidden" and record["window"] > 1
    unit = f"middle of {record['window']} restored layers" if windowed else "restored layer"
    figure = sweep_plots.heat_map(
        kind,
        list(one.effects.values()),
        list(one.effects),
        f"{_NAMES[kind]}, {model}: {facts} facts",
        unit,
    )
    return sweep_plots.save(figure, folder / f"trace-{kind}", formats)
