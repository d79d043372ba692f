"""Moved facts attributed at an evaluation point, and the file of the page."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.callbacks import AttributionCallback
from lightning_edit.callbacks.context import EvalContext
from lightning_edit.editors import MEMIT
from lightning_edit.evaluation.attributed import FactAttribution
from lightning_edit.evaluation.baseline import Baseline
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import ConfigError
from lightning_edit.report.attribution_section import read_attributions
from lightning_edit.storage.jsonl import write_rows
from lightning_edit.storage.run_folder import RunFolder
from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [
    EditRequest(
        "paris",
        "The capital of France is",
        "Rome",
        "France",
        probes=(
            Probe.of("neighborhood", "The capital of France was", "Lyon"),
            Probe.of("neighborhood", "Столица страны Россия это", "Осло"),
        ),
    ),
    EditRequest("lyon", "Marseille lies in", "Italy", "Marseille"),
]


def plain(row: Any) -> dict[str, Any]:
    kept = ("fact", "log_prob", "unedited", "effects", "first_order", "keys", "measured")
    return {name: row[name] for name in kept}


def measured(callback: AttributionCallback) -> tuple[Any, EvalContext]:
    model = build_tiny("qwen3", vocab_size=300).requires_grad_(False)
    tokenizer = build_tokenizer(vocab_size=300)
    scorer = Scorer(model, tokenizer, modes=("tf",))
    probes = [probe for fact in FACTS for probe in probes_of(fact)]
    baseline = Baseline(scorer.score(probes))
    editor = MEMIT(0.1, clamp=0.75, steps=6, statistics="identity", context_templates=["{}"])
    edited = editor.edit_model(model, tokenizer, FACTS)
    scores = baseline.compare(scorer.score(probes))
    context = EvalContext(2, model, tokenizer, FACTS, scores, edited.ledger)
    return callback.measure(context), context


def test_the_probes_that_moved_most_are_attributed(tmp_path: Path) -> None:
    callback = AttributionCallback(facts=5, threshold=0.0)
    found, context = measured(callback)
    assert found.values["attribution/moved"] == 2  # those that must not change, and no other
    moved = {row["fact"]["prompt"]: row for row in found.rows}
    near = moved["The capital of France was"]
    assert near["fact"]["edit_id"] == "paris"
    # Its key is the edit's own, whatever a random model makes of that.
    assert tuple(max(near["effects"], key=lambda one: one["share"])["ids"]) == ("paris",)
    leading = [FactAttribution.from_row(dict(plain(row))).by_edit()[0][0] for row in found.rows]
    assert found.values["attribution/own_edit"] == leading.count(("paris",)) / 2
    for score in context.scores:
        if score.prompt in moved:
            tokens = len(score.forced[0].nlls)
            assert score.pristine is not None
            change = tokens * (score.pristine.nll - score.nll)  # type: ignore[operator]
            assert moved[score.prompt]["change"] == pytest.approx(change, abs=1e-3)
    folder = RunFolder(tmp_path)
    rows = json.loads(json.dumps(list(found.rows)))
    other = [{"after": 1, "by": "AttributionCallback", "rows": rows[:1]}]
    write_rows(folder.measures, [*other, {"after": 2, "by": "AttributionCallback", "rows": rows}])
    callback.on_results(folder)
    assert [one.fact.prompt for one in read_attributions(tmp_path)] == sorted(
        moved, key=lambda prompt: -abs(moved[prompt]["change"])
    )


def test_facts_whose_outputs_overflow_name_no_edit(tmp_path: Path) -> None:
    """The weights are finite, and so are the edits: their effects there are no numbers."""
    callback = AttributionCallback(threshold=0.0)
    _, context = measured(callback)
    with torch.no_grad():
        context.model.get_output_embeddings().weight.fill_(3e38)
    found = callback.measure(context)
    assert found.values == {"attribution/moved": 2.0}
    folder = RunFolder(tmp_path)
    line = {"after": 2, "by": "AttributionCallback", "rows": list(found.rows)}
    write_rows(folder.measures, [line])
    callback.on_results(folder)
    for file in (folder.measures, folder.attribution):
        assert "NaN" not in file.read_text()
        assert "Infinity" not in file.read_text()
    for one in read_attributions(tmp_path):
        assert math.isnan(one.first_order)
        assert one.leading() is None
        assert "not finite" in one.sentence()
        assert "no edit is named" in one.sentence()


def test_only_what_moved_counts() -> None:
    found, context = measured(AttributionCallback(threshold=1e6))
    assert found.values == {"attribution/moved": 0.0}
    assert AttributionCallback().measure(EvalContext(0, context.model, None)).values == {}
    with pytest.raises(ConfigError, match="`facts` must be at least 1"):
        AttributionCallback(facts=0)
