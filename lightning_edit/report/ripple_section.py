"""Ripple-effect section of the page: facts around the edits as graph, curve and bars."""

from collections.abc import Sequence

import networkx as nx
from bokeh.embed import json_item
from bokeh.models import DataRange1d, LinearColorMapper
from bokeh.models.annotations import ColorBar
from bokeh.palettes import interp_palette
from bokeh.plotting import from_networkx

from lightning_edit.report import charts
from lightning_edit.report.drawing import BAR_LABEL, FONT, Drawing, frame, hover
from lightning_edit.report.names import SETS, MetricInfo
from lightning_edit.report.parts import (
    Chart,
    Section,
    line_chart,
    percent_or_dash,
    run_labels,
    scalar_metrics,
)
from lightning_edit.report.ripple import (
    RippleFact,
    RippleGraph,
    distance_words,
    lay_out,
)
from lightning_edit.report.ripple_series import change_over_distance, harmed_facts
from lightning_edit.report.runs import Run
from lightning_edit.report.series import AspectValue

#: Diverging palette: orange less likely (harm), blue more likely, grey unchanged.
CHANGE = interp_palette(("#2F6DB5", "#B9B9B9", "#D1600F"), 21)
#: Changes of at least this size (nats per token) get the full colour.
_SATURATION = 5.0
#: Number of edits whose graph can be selected on the page.
_MAX_GRAPHS = 12
#: Facts of each edit in the data table.
_MAX_LISTED = 10


def ripple_section(
    runs: Sequence[Run], ripples: Sequence[dict[str, list[RippleFact]]]
) -> Section | None:
    """Build the ripple-effect section; return ``None`` if no run measured ripple effects.

    Args:
        runs: The runs.
        ripples: For each run, the facts around its edits.
    """
    first = next((found for found in ripples if found), None)
    if first is None:
        return None
    moved = sorted(first, key=lambda e: -max(abs(fact.change) for fact in first[e]))[:_MAX_GRAPHS]
    graphs = [lay_out(first[edit]) for edit in moved]
    drawn = [
        Chart(
            "ripple-graph",
            "Facts around one edit",
            "Each ring is a distance from the edit in the knowledge graph; squares are close to it "
            "in hidden space only. Point at a fact, or tap it." + _left_out(graphs),
            draw_graph(graphs[0]),
            ("edit", "fact", "distance", "change (nats a token)", "outcome"),
            tuple(row for graph in graphs for row in _graph_rows(graph)),
        )
    ]
    measured = [
        change_over_distance(run.label, found) for run, found in zip(runs, ripples, strict=True)
    ]
    if curves := [line for line in measured if line is not None]:
        title = "Mean change over the distance"
        note = (
            "Rise of the right answer's negative log probability, nats a token; above 0 is harm. "
            "Whiskers: 95 % over edits."
        )
        x_label = "steps in the knowledge graph"
        drawn.append(
            line_chart(
                "ripple-distance", MetricInfo(title, note), curves, x_label, run_labels(runs)
            )
        )
    harmed = [(run.label, shares) for run in runs if (shares := harmed_facts(run, SETS))]
    if harmed:
        rows = tuple(
            (run, value.aspect, percent_or_dash(value.after), _ends(value), str(value.n))
            for run, values in harmed
            for value in values
        )
        note = (
            "Their probability fell below half, or another bound of the run. Whiskers: 95 %, as if "
            "facts were independent; n: facts."
        )
        plot = charts.aspect_bars(harmed, run_labels(runs), "facts")
        header = ("run", "where", "harmed", "95 % interval", "facts")
        drawn.append(Chart("ripple-harmed", "Facts harmed", note, plot, header, rows))
    return Section(
        "ripple",
        "Ripples",
        "Facts near an edit in the knowledge graph, and facts far from it that the model holds "
        "close by, may change with it.",
        tuple(drawn),
        scalar_metrics(runs, "ripple"),
        tuple(moved),
        tuple(json_item(draw_graph(graph).plot) for graph in graphs),
    )


def _ends(value: AspectValue) -> str:
    if value.interval is None:
        return "–"
    return " to ".join(map(percent_or_dash, value.interval))


def _left_out(graphs: Sequence[RippleGraph]) -> str:
    if not any(graph.left_out for graph in graphs):
        return ""
    return " Where there are too many facts, the nearest and of these the most changed are drawn."


def _graph_rows(graph: RippleGraph) -> list[tuple[str, ...]]:
    facts = sorted(graph.facts, key=lambda fact: -abs(fact.change))[:_MAX_LISTED]
    return [
        (
            graph.edit_id,
            " – ".join(fact.fact),
            "–" if fact.distance is None else str(fact.distance),
            f"{fact.change:+.2f}",
            fact.outcome,
        )
        for fact in facts
    ]


def draw_graph(graph: RippleGraph) -> Drawing:
    """Draw the ripple graph of one edit with Bokeh; rings are knowledge-graph distances.

    Args:
        graph: Layout of the facts.
    """
    plot = frame(
        height=244,
        x_range=DataRange1d(range_padding=0.2),
        y_range=DataRange1d(range_padding=0.2),
        match_aspect=True,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    for label, radius in graph.rings:
        plot.circle(0, 0, radius=radius, fill_color=None, line_color="#888888", line_alpha=0.25)
        plot.text(
            [0],
            [radius],
            text=[label],
            text_align="center",
            **BAR_LABEL | {"x_offset": 0, "y_offset": -8},
        )
    net = nx.Graph()
    for number, node in enumerate(graph.nodes):
        fact = node.fact
        net.add_node(
            number,
            change=0.0 if fact is None else fact.change,
            fact=graph.edit_id if fact is None else " – ".join(fact.fact),
            prompt="the edit itself" if fact is None else fact.prompt,
            distance="0" if fact is None else distance_words(fact.distance),
            similarity="" if fact is None or fact.similarity is None else f"{fact.similarity:.2f}",
            outcome="edited" if fact is None else fact.outcome,
            marker="square" if fact is not None and fact.set == "near" else "circle",
            rim=3.0 if fact is None else 0.8,
            size=18
            if fact is None
            else 9 + 3 * min(abs(fact.change), _SATURATION) / _SATURATION * 2,
        )
    net.add_edges_from(graph.links)
    places: dict[int | str, Sequence[float]] = {
        number: (node.x, node.y) for number, node in enumerate(graph.nodes)
    }
    drawn = from_networkx(net, places)
    mapper = LinearColorMapper(palette=CHANGE, low=-_SATURATION, high=_SATURATION)
    drawn.node_renderer.glyph.update(
        size="size",
        marker="marker",
        fill_color={"field": "change", "transform": mapper},
        line_color="#777777",
        line_width="rim",
    )
    drawn.edge_renderer.glyph.update(line_color="#888888", line_alpha=0.35, line_width=1)
    plot.renderers.append(drawn)
    tips = [
        ("", "@fact"),
        ("asked", "@prompt"),
        ("distance", "@distance"),
        ("similarity in hidden space", "@similarity"),
        ("change", "@change{+0.00} nats"),
        ("", "@outcome"),
    ]
    hover(plot, tips, [drawn.node_renderer])
    bar = ColorBar(color_mapper=mapper, height=8, padding=4, background_fill_color=None)
    bar.title_text_font_style = "normal"
    bar.title_text_font = bar.major_label_text_font = FONT
    bar.title = "rise in nats a token; orange: less likely now"
    plot.add_layout(bar, "below")
    return Drawing(plot)
