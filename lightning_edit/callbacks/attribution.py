"""Attribution callback: which edits moved the facts that should have stayed."""

from collections.abc import Mapping
from typing import Any

from torchmetrics import SumMetric

from lightning_edit.callbacks.base import EvalContext, Measurement, MeasurementCallback
from lightning_edit.evaluation.attributed import SCHEMA, FactAttribution
from lightning_edit.evaluation.edit_attribution import attribute_in_ledger
from lightning_edit.report.moved_facts import largest, moved_probe
from lightning_edit.storage.jsonl import read_rows
from lightning_edit.storage.run_folder import RunFolder


class AttributionCallback(MeasurementCallback):
    """Attribution of moved facts to edits: which edit changed a fact, and in which block.

    At every evaluation point the probes that must not change and moved most are attributed to the
    edits in force, see :func:`lightning_edit.attribute_edits`. Values: ``attribution/moved``, the
    number of facts that were attributed; ``attribution/own_edit``, the share of them whose largest
    effect is that of the edit which they are a probe of (of a commit that was attributed as a whole
    any of its edits counts; facts whose effects are not finite are left out).
    ``attribution.json`` in the run folder has the last evaluation's attributions (``single``: those
    of all edits that moved most), for the page. Works under ``EditTrainer`` only, whose ledger has
    the edits.

    Args:
        facts: Maximum number of facts of an evaluation.
        top: Number of edits that are listed for each fact.
        threshold: Change of a fact, in nats per answer token, from which it counts as moved.
        **kwargs: See :class:`~lightning_edit.callbacks.base.MeasurementCallback`.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self, facts: int = 5, top: int = 3, threshold: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.facts = facts
        self.top = top
        self.threshold = threshold
        self.require(
            facts=(facts >= 1, "at least 1"),
            top=(top >= 1, "at least 1"),
            threshold=(threshold >= 0, "0 or more"),
        )

    def measure(self, context: EvalContext) -> Measurement:
        """Attribute the facts that moved most.

        Args:
            context: The model, the outcomes of its probes, and the ledger.
        """
        ledger = context.ledger
        if ledger is None or not len(ledger.in_force):
            return Measurement({})
        moved = [pair for pair in map(moved_probe, context.scores) if pair is not None]
        changes = {fact: change for fact, change in moved if abs(change) >= self.threshold}
        facts = largest(changes, self.facts)
        editor = ledger.editor if context.responder is not None else None
        found = attribute_in_ledger(ledger, context.encoder, editor, facts, self.top)
        # Sums, so that every process may have any share of the probes.
        own, known, count = (SumMetric().to(context.device) for _ in range(3))
        leading = [(one.leading(), one.fact.edit_id) for one in found]
        own.update(float(sum(ids is not None and edit in ids for ids, edit in leading)))
        known.update(float(sum(_is_known(one) for one in found)))
        count.update(float(len(found)))
        values = {"attribution/moved": float(count.compute())}
        if total := float(known.compute()):
            values["attribution/own_edit"] = float(own.compute()) / total
        rows = [{"alone": context.single_edit, **one.to_row()} for one in found]
        return Measurement(values, rows)

    def on_results(self, folder: RunFolder) -> None:
        """Write ``attribution.json``.

        Args:
            folder: The run's folder.
        """
        name = type(self).__name__
        rows: list[Mapping[str, Any]] = []
        for line in read_rows(folder.measures):
            if line["by"] != name:
                continue
            found = line.get("rows", ())
            alone = bool(found) and found[0]["alone"]
            rows = [*rows, *found] if alone else list(found)
        rows = sorted(rows, key=lambda row: -abs(row["change"]))[: self.facts]
        listed = [{k: v for k, v in row.items() if k != "alone"} for row in rows]
        folder.write_json(folder.attribution, {"schema": SCHEMA, "facts": listed})


def _is_known(one: FactAttribution) -> bool:
    """Whether it is known what moved a fact: to first order, or by a commit left out."""
    return one.is_finite or one.leading() is not None
