"""SIR: facts that an edit would move are written to stay, and the edit holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.editors import MEMIT, ROME, SIR
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest
from tests.editors.golden import Golden, batch, golden, model, statistics, tokenizer


def neighbours(example: Golden) -> list[EditRequest]:
    facts = {}
    for record in example.meta.get("requests_full") or example.meta["requests"]:
        tail = record["prompt"].removeprefix("{}")
        for other in record["neighborhood"]:
            subject = other["prompt"].removesuffix(tail)
            facts[other["prompt"]] = EditRequest(
                f"fact-{len(facts)}", other["prompt"], other["object"], subject
            )
    return list(facts.values())


def memit(example: Golden, language_model: Any, folder: Path) -> MEMIT:
    return MEMIT(
        layers=[1, 2, 3],
        # So weak a hold on old keys moves neighbours far.
        moment_weight=0.02,
        statistics=statistics(example.model_name, language_model, folder),
        context_templates=[],
    )


@pytest.mark.parametrize("restore", ["residual", "search"])
def test_moved_facts_are_restored_and_the_edits_hold(restore: Any, tmp_path: Path) -> None:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    facts = neighbours(example)
    editor = SIR(
        facts, memit(example, language_model, tmp_path), revised=10, rounds=2, restore=restore
    )
    editor.bind(language_model, tokenizer(example.model_name))
    part = batch(example)
    before = editor._nll(facts)
    after = {}
    for one in (editor.editor, editor):
        delta = one.edit(part)
        with delta.applied(language_model):
            rise = editor._nll(facts) - before
            after[one] = (rise, editor._nll(part.requests).mean())
    assert delta.request_ids == part.ids
    revised = [number for number, fact in enumerate(facts) if fact.id in delta.info["revised"]]
    assert 0 < len(revised) <= 20
    (host_rise, host_nll), (rise, nll) = after[editor.editor], after[editor]
    assert host_rise[revised].mean() > 0.5
    assert rise[revised].mean() < 0.5 * host_rise[revised].mean()
    assert nll < host_nll + 0.5


def test_facts_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    fact = {"prompt": "The capital of Peru is", "subject": "Peru", "target": "Lima"}
    path.write_text(json.dumps(fact) + "\n")
    (read,) = SIR(str(path)).facts
    assert (read.subject, read.target) == ("Peru", "Lima")
    path.write_text("{")
    with pytest.raises(DataError, match="one JSON object a line"):
        SIR(str(path))


def test_hosts_that_cannot_be_written_together_are_refused() -> None:
    fact = EditRequest("a", "The capital of Peru is", "Lima", "Peru")
    with pytest.raises(ValueError, match="solves batches"):
        SIR([fact], ROME())
    with pytest.raises(ValueError, match="at least one fact"):
        SIR([])
