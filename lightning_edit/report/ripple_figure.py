"""Figure of an edit's ripple effects, for papers: facts on rings of distance around the edit."""

from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from lightning_edit.exceptions import DataError
from lightning_edit.report.figure_style import COLUMN_WIDTH, paper_figure, require
from lightning_edit.report.ripple import RippleGraph, lay_out, read_ripples
from lightning_edit.report.runs import RunsLike, as_runs

_SATURATION = 5.0  # nats per token; the same colour scale as on the page


def plot_ripple(run: RunsLike, edit_id: str | None = None) -> Figure:
    """Plot the ripple effects of an edit; each ring is one step further in the knowledge graph.

    Args:
        run: One run.
        edit_id: Id of the edit; default: the one whose facts changed most.

    Raises:
        DataError: If the run measured no ripple effects, or none around this edit.
    """
    (one,) = as_runs(run)
    found = read_ripples(one.folder)
    require(found, "ripples")
    chosen = edit_id or max(found, key=lambda e: max(abs(fact.change) for fact in found[e]))
    if chosen not in found:
        raise DataError(f"no ripples around edit {chosen!r}; there are: {', '.join(found)}")
    return _draw_ripple(lay_out(found[chosen]))


def _draw_ripple(graph: RippleGraph) -> Figure:
    colours = LinearSegmentedColormap.from_list("change", ["#2F6DB5", "#B9B9B9", "#D1600F"])
    scale = Normalize(-_SATURATION, _SATURATION, clip=True)
    with paper_figure(1, 1, COLUMN_WIDTH) as (figure, (axes,)):
        for words, radius in graph.rings:
            axes.add_patch(Circle((0, 0), radius, fill=False, ec="#DDDDDD", lw=0.5, zorder=0))
            # Facts begin at the right, so the name of a ring stands at its top, on its own ground.
            ground = {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8}
            style: Any = {"fontsize": 6, "color": "#555555", "zorder": 3, "bbox": ground}
            axes.text(0, radius, words, ha="center", va="center", **style)
        for begin, end in graph.links:
            pair = graph.nodes[begin], graph.nodes[end]
            axes.plot([n.x for n in pair], [n.y for n in pair], color="#999999", lw=0.4, zorder=1)
        changes = [0.0 if node.fact is None else node.fact.change for node in graph.nodes]
        axes.scatter(
            [node.x for node in graph.nodes],
            [node.y for node in graph.nodes],
            s=[40 if node.fact is None else 18 for node in graph.nodes],
            c=colours(scale(changes)),
            edgecolors="#555555",
            linewidths=0.4,
            zorder=2,
        )
        axes.set_aspect("equal")
        axes.axis("off")
        bar = figure.colorbar(
            ScalarMappable(scale, colours), ax=axes, shrink=0.6, location="bottom"
        )
        bar.set_label("change of the right answer, nats a token")
    return figure
