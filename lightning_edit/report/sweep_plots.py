"""Plots of sweeps, trade-offs and causal tracing; needs matplotlib, the extra ``plot``.

Matplotlib's object interface draws without a display and leaves no state behind.
"""

import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.exceptions import ConfigError
from lightning_edit.storage.atomic import write_atomic, write_error

INSTALL = 'pip install "lightning-edit[plot]"'
FORMATS = ("png", "pdf", "svg")
#: Colour-blind safe (Okabe and Ito), in the order of the aspects, the score last.
_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#000000")
_MAPS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that are not known before any work is done.

    Args:
        formats: Such as ``png``.

    Raises:
        ConfigError: If one is none of :data:`FORMATS`.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise ConfigError(f"--figures knows {', '.join(FORMATS)}; got {unknown[0]!r}")


def available() -> bool:
    """Return whether matplotlib is installed; say on the terminal how to get it if it is not."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        sys.stderr.write(f"No plot: matplotlib is not installed. For it: {INSTALL}\n")
    return found


def save(figure: Any, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure, each file whole or not at all.

    Args:
        figure: A matplotlib figure.
        stem: Path without the ending.
        formats: Endings.

    Returns:
        The files.

    Raises:
        LedgerWriteError: If the disk refuses.
    """
    paths = []
    for ending in formats:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=150, bbox_inches="tight")
        path = stem.with_suffix(f".{ending}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue())
        except OSError as error:
            raise write_error(error, path, "The results themselves are written.") from error
        paths.append(path)
    return paths


def quality_over_layers(
    layers: Sequence[Sequence[int]],
    means: Mapping[str, Sequence[float]],
    score: Sequence[float],
    spread: Sequence[float],
    best: int,
    title: str,
) -> Any:
    """Draw each aspect and the score over the edited layers.

    Args:
        layers: The choices, in the order in which they are drawn.
        means: By aspect, one value a choice.
        score: Harmonic mean of each choice.
        spread: Standard error of each score.
        best: Number of the best choice.
        title: What was edited.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure  # an optional package

    names = [label(one) for one in layers]
    figure = Figure(figsize=(max(5.0, 2.5 + 0.32 * len(names)), 3.6))
    axes = figure.add_subplot()
    places = list(range(len(names)))
    for colour, (aspect, values) in zip(_COLOURS, means.items(), strict=False):
        axes.plot(places, values, marker="o", markersize=3, linewidth=1, color=colour, label=aspect)
    low = [max(0.0, one - error) for one, error in zip(score, spread, strict=True)]
    high = [min(1.0, one + error) for one, error in zip(score, spread, strict=True)]
    axes.fill_between(places, low, high, color=_COLOURS[-1], alpha=0.12, linewidth=0)
    axes.plot(
        places, score, color=_COLOURS[-1], linewidth=2, label="harmonic mean ± standard error"
    )
    axes.plot([places[best]], [score[best]], marker="*", markersize=13, color=_COLOURS[-1])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_xlabel("edited layer" if all(len(one) == 1 for one in layers) else "edited layers")
    axes.set_ylabel("share of probes")
    _finish(axes, title)
    return figure


def over_weights(weights: Sequence[float], means: Mapping[str, Sequence[float]], title: str) -> Any:
    """Draw success against what is kept, and both over the interpolation weight.

    Args:
        weights: α of each point.
        means: By aspect, one value a weight.
        title: What was edited.

    Returns:
        A matplotlib figure with two panels.
    """
    from matplotlib.figure import Figure  # an optional package

    figure = Figure(figsize=(9.0, 3.6))
    left, right = figure.subplots(1, 2)
    for colour, (aspect, values) in zip(_COLOURS, means.items(), strict=False):
        left.plot(
            weights, values, marker="o", markersize=3, linewidth=1, color=colour, label=aspect
        )
    left.set_xlabel("α: 0 original weights, 1 edited weights")
    left.set_ylabel("share of probes")
    left.set_ylim(-0.03, 1.03)
    _finish(left, title)
    kept = means.get("locality")
    for aspect, colour in (("reliability", _COLOURS[0]), ("generalization", _COLOURS[1])):
        if kept is None or aspect not in means:
            continue
        right.plot(kept, means[aspect], marker="o", markersize=3, color=colour, label=aspect)
        for number in sorted({0, len(weights) // 2, len(weights) - 1}):
            right.annotate(
                f"α={weights[number]:g}",
                (kept[number], means[aspect][number]),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=7,
            )
    right.set_xlabel("locality: share of other answers kept")
    right.set_ylabel("success of the edit")
    right.set_ylim(-0.03, 1.08)
    _finish(right, "success against locality")
    figure.tight_layout()
    return figure


def heat_map(
    kind: str, effects: Sequence[Sequence[float]], rows: Sequence[str], title: str, unit: str
) -> Any:
    """Draw indirect effects by token and layer, as in figure 2 of ROME's paper.

    Args:
        kind: ``hidden``, ``mlp`` or ``attention``; chooses the colours.
        effects: One row a token (or a token's role), one column a layer.
        rows: Names of the rows.
        title: What is shown.
        unit: Name of the columns.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure  # an optional package

    columns = len(effects[0])
    figure = Figure(figsize=(max(4.0, 1.8 + 0.13 * columns), 0.9 + 0.27 * len(rows)))
    axes = figure.add_subplot()
    image = axes.pcolormesh(
        [list(row) for row in effects], cmap=_MAPS[kind], vmin=min(0.0, *map(min, effects))
    )
    axes.invert_yaxis()
    axes.set_yticks([0.5 + row for row in range(len(rows))], rows)
    marked = range(0, columns, max(1, columns // 12))
    axes.set_xticks([0.5 + at for at in marked], [str(at) for at in marked])
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=9, loc="left")
    figure.colorbar(image, ax=axes, label="indirect effect")
    return figure


def label(layers: Sequence[int]) -> str:
    """Return consecutive layers as ``3–5``, others with commas.

    Args:
        layers: Block numbers, rising.
    """
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ",".join(map(str, layers))


def _finish(axes: Any, title: str) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(fontsize=7, frameon=False)
