"""SIR: facts that an edit would move are written to stay, and the edit holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.editors import MEMIT, ROME, SIR
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.edits.ledger import Ledger
from lightning_edit.exceptions import DataError
from lightning_edit.types import EditRequest
from tests.editors.golden import Golden, batch, golden, model, statistics, tokenizer

pytestmark = pytest.mark.slow  # minutes in all: whole edits, studies and traces of a real model


def neighbours(example: Golden) -> list[EditRequest]:
    facts: dict[str, EditRequest] = {}
    for record in example.meta.get("requests_full") or example.meta["requests"]:
        tail = record["prompt"].removeprefix("{}")
        for other in record["neighborhood"]:
            subject = other["prompt"].removesuffix(tail)
            fact = EditRequest(f"fact-{len(facts)}", other["prompt"], other["object"], subject)
            facts.setdefault(fact.prompt, fact)  # some neighbours are those of two records
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
    known = editor._unedited.facts
    before, _ = editor._answer_nll(known)
    assert torch.equal(before, editor._unedited.nll)
    after = {}
    for one in (editor.editor, editor):
        delta = one.edit(part)
        with delta.applied(language_model):
            rise = editor._answer_nll(known)[0] - before
            after[one] = (rise, editor._answer_nll(part.requests)[0].mean())
    assert delta.request_ids == part.ids
    revised = [number for number, fact in enumerate(known) if fact.id in delta.info["revised"]]
    assert 0 < len(revised) <= 20
    (host_rise, host_nll), (rise, nll) = after[editor.editor], after[editor]
    assert host_rise[revised].mean() > 0.5
    assert rise[revised].mean() < 0.5 * host_rise[revised].mean()
    assert nll < host_nll + 0.5


def test_facts_go_back_to_what_they_were_before_the_first_edit(tmp_path: Path) -> None:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    editor = SIR(neighbours(example), memit(example, language_model, tmp_path), rounds=1)
    editor.bind(language_model, tokenizer(example.model_name))
    first, second = batch(example).split()[:2]
    known = {fact.id: number for number, fact in enumerate(editor._unedited.facts)}
    ledger = Ledger(language_model, editor)
    harm = replace(editor.editor.edit(first), info={})
    ledger.commit(harm, first.requests)
    harmed, _ = editor._answer_nll(editor._unedited.facts)
    # An edit that moves nothing itself: all there is to restore was done by the one before.
    editor.host.objective = replace(editor.host.objective, steps=1)
    delta = editor.edit(second)
    revised = [known[name] for name in delta.info["revised"]]
    assert revised
    with delta.applied(language_model):
        now, _ = editor._answer_nll(editor._unedited.facts)
    before = editor._unedited.nll
    assert (now - before)[revised].mean() < 0.5 * (harmed - before)[revised].mean()


def test_facts_about_what_was_edited_are_left_to_change(tmp_path: Path) -> None:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    first, second = batch(example).requests[:2]
    old = example.meta["requests"][0]["target_true"]["str"]
    facts = [replace(first, id="old", target=old), *neighbours(example)]
    editor = SIR(facts, memit(example, language_model, tmp_path), candidates=10**6)
    editor.bind(language_model, tokenizer(example.model_name))
    assert editor._unedited.facts[0].id == "old"
    ledger = Ledger(language_model, editor)
    one, other = (encode_batch(editor.tokenizer, [request]) for request in (first, second))
    probe = editor.editor.edit(other)
    assert 0 in editor._most_disturbed(other, probe)
    assert 0 not in editor._most_disturbed(one, probe)
    ledger.commit(editor.edit(one), [first])
    assert 0 not in editor._most_disturbed(other, probe)
    ledger.undo([first.id])
    assert 0 in editor._most_disturbed(other, probe)


def test_what_the_model_does_not_know_is_not_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    example = golden("MEMIT/tiny-gpt2/ten-float32")
    language_model = model(example.model_name)
    facts = [replace(fact, target="Nowhere") for fact in neighbours(example)[:2]]
    editor = SIR(facts, memit(example, language_model, tmp_path))
    editor.bind(language_model, tokenizer(example.model_name))
    assert "knows none of the 2 facts" in caplog.text
    assert editor.edit(batch(example).split()[0]).info["revised"] == []


def test_facts_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    fact = {"prompt": "The capital of Peru is", "subject": "Peru", "target": "Lima"}
    path.write_text(json.dumps(fact) + "\n")
    (read,) = SIR(str(path)).facts
    assert (read.subject, read.target) == ("Peru", "Lima")
    assert len(SIR("atlas").facts) > 500
    # Line ends of Unicode may stand in a record as they are.
    path.write_text(json.dumps(fact | {"target": "Li\u2028ma"}, ensure_ascii=False) + "\n")
    (read,) = SIR(str(path)).facts
    assert read.target == "Li\u2028ma"
    path.write_text("{")
    with pytest.raises(DataError, match="one JSON object a line"):
        SIR(str(path))


def test_hosts_that_cannot_be_written_together_are_refused() -> None:
    fact = EditRequest("a", "The capital of Peru is", "Lima", "Peru")
    with pytest.raises(ValueError, match="solves batches"):
        SIR([fact], ROME())
    with pytest.raises(ValueError, match="at least one fact"):
        SIR([])
