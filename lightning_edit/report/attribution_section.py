"""Section of the page that says which edit moved a fact, and in which block."""

import json
from collections.abc import Sequence
from pathlib import Path

from bokeh.models import ColumnDataSource, FactorRange
from bokeh.models.annotations import Span

from lightning_edit.evaluation.attributed import SCHEMA, EditEffect, FactAttribution, name_of
from lightning_edit.exceptions import DataError
from lightning_edit.report.drawing import Drawing, escape_math, frame, hover
from lightning_edit.report.parts import Chart, Section
from lightning_edit.report.runs import Run
from lightning_edit.storage.run_folder import RunFolder

#: Facts that are drawn, and effects of each.
_MAX_FACTS, _MAX_EFFECTS = 6, 8
_HARM, _GAIN = "#D1600F", "#2F6DB5"


def read_attributions(folder: Path) -> list[FactAttribution]:
    """Read the attributions of a run; none if it has not been asked for any.

    Args:
        folder: Folder of the run.

    Raises:
        DataError: If the file is not in the format of this version.
    """
    path = RunFolder(folder).attribution
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["schema"] == SCHEMA
        rows = content["facts"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no attribution ({error!r}); write it again") from error
    if not known:
        raise DataError(
            f"{path}: expected schema {SCHEMA}, got {content['schema']}; write it again with "
            "`lightning-edit attribute`"
        )
    return [FactAttribution.from_row(row) for row in rows]


def attribution_section(
    runs: Sequence[Run], found: Sequence[Sequence[FactAttribution]]
) -> Section | None:
    """Build the section; return ``None`` if no run has attributions.

    Args:
        runs: The runs.
        found: For each run, its attributions.
    """
    drawn = []
    for number, (run, listed) in enumerate(zip(runs, found, strict=True)):
        named = f"{run.label}: " if len(runs) > 1 else ""
        for place, one in enumerate(listed[:_MAX_FACTS]):
            drawn.append(_chart(f"attribution-{number}-{place}", named, one))
    if not drawn:
        return None
    return Section(
        "attribution",
        "Why facts moved",
        "Which edit changed a fact that should have stayed, and in which block. Each bar is the "
        "first-order effect of one edit through one layer on the answer's log-probability; "
        "effects need not sum to the change, which they foretell for small steps only.",
        tuple(drawn),
        gist=drawn[0].note,
        open=False,
    )


def _chart(name: str, named: str, one: FactAttribution) -> Chart:
    effects = one.effects[:_MAX_EFFECTS]
    rows = [
        (_label(effect), f"{effect.log_prob:+.3f}", f"{effect.logit:+.3f}", effect.by)
        for effect in effects
    ]
    rows += [
        (f"{name_of(effect.ids)}, left out", f"{effect.log_prob:+.3f}", "–", "measured")
        for effect in one.measured
    ]
    title = f"{named}{one.fact.prompt} → {one.fact.answer}"
    sentence = one.sentence()
    note = f"{sentence[:1].upper()}{sentence[1:]}."
    header = ("edit", "log-probability (nats)", "logit", "by")
    return Chart(name, title, note, _bars(one), header, tuple(rows))


def _label(effect: EditEffect) -> str:
    where = effect.module if effect.block is None else f"block {effect.block}"
    if effect.stack == "encoder":
        where = f"encoder {where}"
    return f"{name_of(effect.ids)}, {where}"


def _bars(one: FactAttribution) -> Drawing:
    """Draw the effects as horizontal bars to both sides of zero."""
    values = [(_label(effect), effect.log_prob) for effect in one.effects[:_MAX_EFFECTS]]
    values = values or [(name_of(e.ids), e.log_prob) for e in one.measured[:_MAX_EFFECTS]]
    # Two layers of one block may have one label, which a categorical axis takes once.
    names = [escape_math(f"{name} ({n + 1})") for n, (name, _) in enumerate(values)]
    source = ColumnDataSource(
        {
            "name": names,
            "value": [value for _, value in values],
            "colour": [_HARM if value < 0 else _GAIN for _, value in values],
        }
    )
    plot = frame(
        height=56 + 30 * max(1, len(names)),
        y_range=FactorRange(factors=names[::-1]),
        x_axis_label="effect on the log-probability, nats; orange: less likely",
    )
    drawn = plot.hbar(y="name", right="value", height=0.62, color="colour", source=source)
    plot.add_layout(Span(location=0, dimension="height", line_color="#888888", line_alpha=0.5))
    hover(plot, [("", "@name"), ("effect", "@value{+0.000} nats")], [drawn])
    plot.ygrid.visible = False
    return Drawing(plot)
