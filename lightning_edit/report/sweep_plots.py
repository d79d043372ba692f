"""Matplotlib plots of layer sweeps, trade-offs and causal tracing; needs the extra ``plot``.

Matplotlib's object-oriented interface needs no display and leaves no global state.
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
#: Colour-blind-safe palette (Okabe and Ito), in the order of the aspects; the score is last.
_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#000000")
_MAPS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}


def check_formats(formats: Sequence[str]) -> None:
    """Check the figure formats before any work is done.

    Args:
        formats: File formats, such as ``png``.

    Raises:
        ConfigError: If one of them is not in :data:`FORMATS`.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise ConfigError(f"--figures knows {', '.join(FORMATS)}; got {unknown[0]!r}")


def available() -> bool:
    """Return whether Matplotlib is installed; if not, print how to install it."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        sys.stderr.write(f"No plot: Matplotlib is not installed. Install it with: {INSTALL}\n")
    return found


def save(figure: Any, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Save a figure in several formats, each file atomically.

    Args:
        figure: A Matplotlib figure.
        stem: Path without the extension.
        formats: File extensions.

    Returns:
        The paths of the files.

    Raises:
        LedgerWriteError: If a file cannot be written.
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
    """Plot a layer sweep: each aspect and the score over the edited layers.

    Args:
        layers: The choices of layers, in plotting order.
        means: By aspect, one value per choice.
        score: Harmonic mean of each choice.
        spread: Standard error of each score.
        best: Index of the best choice.
        title: Title of the plot.

    Returns:
        A Matplotlib figure.
    """
    from matplotlib.figure import Figure  # an optional dependency

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
    """Plot the trade-off of an interpolated edit: aspects over α, and success against locality.

    Args:
        weights: Interpolation weight α of each point.
        means: By aspect, one value per weight.
        title: Title of the plot.

    Returns:
        A Matplotlib figure with two panels.
    """
    from matplotlib.figure import Figure  # an optional dependency

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


def success_against_locality(
    points: Sequence[tuple[float, float]],
    front: Sequence[int],
    best: int | None,
    own: int | None,
    title: str,
) -> Any:
    """Plot the trials of a search: success of the edit over locality, with the Pareto front.

    Args:
        points: Locality and success (mean of reliability and generalization) of each trial.
        front: Places of the trials that no other beats in both.
        best: Place of the chosen trial; ``None`` if none is.
        own: Place of the trial with the editor's own settings; ``None`` if there is none.
        title: Title of the plot.

    Returns:
        A Matplotlib figure.
    """
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=(5.2, 3.8))
    axes = figure.add_subplot()
    kept, success = zip(*points, strict=True)
    axes.scatter(kept, success, s=16, color=_COLOURS[1], label="trial", clip_on=False)
    ordered = sorted(points[place] for place in front)
    axes.plot(
        *zip(*ordered, strict=True), color=_COLOURS[0], linewidth=1, label="no trial is better"
    )
    if own is not None:
        square: dict[str, Any] = {"marker": "s", "s": 42, "color": _COLOURS[2]}
        axes.scatter(*points[own], label="own settings", **square, clip_on=False, zorder=3)
    if best is not None:
        star: dict[str, Any] = {"marker": "*", "s": 120, "color": _COLOURS[-1]}
        axes.scatter(*points[best], label="chosen", **star, clip_on=False, zorder=4)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("locality: share of other answers kept")
    axes.set_ylabel("success of the edit")
    _finish(axes, title)
    return figure


def heat_map(
    kind: str, effects: Sequence[Sequence[float]], rows: Sequence[str], title: str, unit: str
) -> Any:
    """Plot a causal-tracing heat map of indirect effects by token and layer (ROME, figure 2).

    Args:
        kind: ``hidden``, ``mlp`` or ``attention``; sets the colour map.
        effects: One row per token (or token role), one column per layer.
        rows: Names of the rows.
        title: Title of the plot.
        unit: Label of the columns.

    Returns:
        A Matplotlib figure.
    """
    from matplotlib.figure import Figure  # an optional dependency

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
    """Format layer numbers: consecutive layers as ``3–5``, others with commas.

    Args:
        layers: Block numbers, ascending.
    """
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ",".join(map(str, layers))


def _finish(axes: Any, title: str) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(fontsize=7, frameon=False)
