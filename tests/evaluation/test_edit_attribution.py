"""Attribution of facts to edits: derivatives, undo, other scripts, and what is refused."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit import EditedModel, load_language_model
from lightning_edit.editors import FT, GRACE, MEMIT, RECT, ROME, Editor, MemPrompt, UltraEdit
from lightning_edit.edits.delta import Delta, Dense
from lightning_edit.evaluation.attributed import AskedFact, FactAttribution
from lightning_edit.evaluation.edit_attribution import shares_at_key
from lightning_edit.exceptions import ConfigError, DataError, LedgerError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.weights import weight, weights_hash
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tiny, build_tokenizer

SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[3] / "smol"))
FACTS = (
    EditRequest("paris", "The capital of France is", "Rome", "France"),
    EditRequest("осло", "Столица страны Россия это", "Осло", "Россия"),
    EditRequest("東京", "中国的首都是", "东京", "中国"),
)
#: Questions that are no edits, the last two in other scripts.
ASKED = [
    ("The capital of Italy is", "Rome"),
    ("Столица страны Франция это", "Париж"),
    ("日本的首都是", "北京"),
]
CORPUS = [f"{fact.prompt} {fact.target}" for fact in FACTS] + [" ".join(pair) for pair in ASKED]
LOCATE: dict[str, Any] = {"steps": 4, "statistics": "identity", "context_templates": ["{}"]}


def memit() -> Editor:
    return MEMIT(moment_weight=1.0, **LOCATE)


def edited_tiny(editor: Editor, family: str, facts: Any = FACTS, double: bool = False) -> Any:
    model = build_tiny(family, vocab_size=320).requires_grad_(False)
    model = model.double() if double else model
    tokenizer = build_tokenizer(vocab_size=320, corpus=CORPUS, eos=family in ("t5", "bart"))
    return editor.edit_model(model, tokenizer, facts)


def log_prob(edited: Any, prompt: str, answer: str) -> tuple[float, float]:
    """Score an answer with the model itself: its log-probability, and its first token's logit."""
    prompts = edited.editor.prompts
    (row,) = prompts.pairs([(prompt, answer)])
    rows = AnswerRows.of(edited.model, [row])
    with torch.no_grad():
        logits = answer_logits(edited.model, rows)
    at = logits[range(len(rows.targets)), rows.targets]
    return float((at - logits.logsumexp(1)).sum()), float(at[0])


def derivative(
    edited: Any, ids: tuple[str, ...], asked: tuple[str, str], step: float
) -> tuple[float, float]:
    """Differentiate the scores by the size of one request's update, numerically."""
    (delta,) = edited.ledger.deltas
    model = edited.model
    number = delta.request_ids.index(ids[0])
    found = []
    for sign in (1, -1):
        before = {name: weight(model, name).read() for name in delta.weights}
        for name, update in delta.weights.items():
            chosen = [n for n, owner in enumerate(delta.columns[name]) if owner == number]
            part = update.left[:, chosen].double() @ update.right[chosen].double()
            weight(model, name).write(before[name] + sign * step * part)
        found.append(log_prob(edited, *asked))
        for name, value in before.items():
            weight(model, name).write(value)
    (up, up_logit), (down, down_logit) = found
    return (up - down) / (2 * step), (up_logit - down_logit) / (2 * step)


@pytest.mark.parametrize(
    ("family", "make"),
    [
        ("qwen3", memit),
        ("gpt2", lambda: UltraEdit(eta=1.0)),
        pytest.param("llama", memit, marks=pytest.mark.slow),
        pytest.param("gemma3_text", memit, marks=pytest.mark.slow),
        pytest.param("opt", memit, marks=pytest.mark.slow),
        pytest.param("gpt_neox", lambda: UltraEdit(eta=1.0), marks=pytest.mark.slow),
    ],
)
def test_effects_are_derivatives_by_the_size_of_an_edit(
    family: str, make: Callable[[], Editor]
) -> None:
    edited = edited_tiny(make(), family, double=True)
    # Norms of newer models compute in float32, whose rounding a small step would show.
    step, error = (1e-6, 1e-4) if family in ("gpt2", "opt", "gpt_neox") else (3e-3, 1e-2)
    before = weights_hash(edited.model)
    found = edited.attribute(ASKED)
    assert weights_hash(edited.model) == before
    for asked, one in zip(ASKED, found, strict=True):
        assert {effect.by for effect in one.effects} == {"columns"}
        assert one.log_prob == pytest.approx(log_prob(edited, *asked)[0], abs=1e-5)
        for fact in FACTS:
            mine = [effect for effect in one.effects if effect.ids == (fact.id,)]
            assert len(mine) == len(edited.ledger.touched)
            by_log_prob, by_logit = derivative(edited, (fact.id,), asked, step)
            assert sum(e.log_prob for e in mine) == pytest.approx(by_log_prob, rel=error, abs=error)
            assert sum(e.logit for e in mine) == pytest.approx(by_logit, rel=error, abs=error)
        assert one.first_order == pytest.approx(sum(e.log_prob for e in one.effects))


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_commit_that_is_left_out_is_one_that_was_undone(family: str) -> None:
    edited = edited_tiny(ROME(**LOCATE), family, FACTS[:1])
    edited.edit(FACTS[1]).edit(FACTS[2])
    before = weights_hash(edited.model)
    found = edited.attribute(ASKED, measure=3)
    assert weights_hash(edited.model) == before
    for fact in FACTS:
        edited.undo(fact.id)
        for asked, one in zip(ASKED, found, strict=True):
            (mine,) = [effect for effect in one.measured if effect.ids == (fact.id,)]
            without = log_prob(edited, *asked)[0]
            assert mine.log_prob == pytest.approx(one.log_prob - without, abs=1e-4)
        edited.redo(fact.id)
    edited.undo()
    for asked, one in zip(ASKED, found, strict=True):
        assert one.unedited == pytest.approx(log_prob(edited, *asked)[0], abs=1e-5)


def test_the_edit_itself_is_moved_by_itself_most() -> None:
    edited = edited_tiny(memit(), "qwen3")
    for fact in FACTS:
        (one,) = edited.attribute({"prompt": fact.prompt, "answer": fact.target})
        assert one.change > 0
        assert one.by_edit()[0][0] == (fact.id,)
        largest = max(one.effects, key=lambda effect: effect.share)
        assert largest.ids == (fact.id,)
        assert "most by edit " + fact.id in one.sentence()
        assert "in block" in one.sentence()


@pytest.mark.parametrize("family", ["gpt2", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_shares_at_a_facts_key_sum_to_the_change(family: str) -> None:
    edited = edited_tiny(memit(), family, FACTS[:2])
    edited.edit(FACTS[2])
    for layer in shares_at_key(edited, (*ASKED[1], "Франция")):
        assert [ids for ids, _ in layer.shares] == [(fact.id,) for fact in FACTS]
        summed = torch.stack([share for _, share in layer.shares]).sum(0)
        assert (summed - layer.change).abs().max() <= 1e-6
        change = sum(delta.weights[layer.parameter].dense() for delta in edited.ledger.deltas)
        assert (change @ layer.key - layer.change).abs().max() <= 1e-6
        assert layer.change.norm() > 1e-3
        # The key is read on the edited model: the layer itself says so.
        assert "Франция".endswith(layer.token.strip())


def test_a_subject_says_where_the_key_is() -> None:
    edited = edited_tiny(memit(), "gpt2")
    prompt, subject = "The river Rhône of France flows", "Rhône"
    (one,) = edited.attribute((prompt, "Lyon", subject))
    assert all(prompt[: prompt.index(" of")].endswith(token.strip()) for token in one.keys.values())
    with pytest.raises(DataError, match="'Seine' is not in the prompt"):
        edited.attribute((prompt, "Lyon", "Seine"))


def test_a_mask_is_attributed_by_its_commit_or_refused() -> None:
    edited = edited_tiny(RECT(memit()), "gpt2")
    (one,) = edited.attribute(ASKED[0])
    assert {effect.by for effect in one.effects} == {"undo"}
    assert {effect.ids for effect in one.effects} == {tuple(fact.id for fact in FACTS)}
    assert "commit 1 (" in one.sentence()
    with pytest.raises(ConfigError, match=r"no columns of its requests.*--by undo"):
        edited.attribute(ASKED[0], by="columns")
    (whole,) = edited.attribute(ASKED[0], by="undo")
    assert not whole.effects
    assert whole.measured[0].log_prob == pytest.approx(whole.change, abs=1e-5)


@pytest.mark.parametrize("editor", [GRACE(steps=6), MemPrompt()], ids=["GRACE", "MemPrompt"])
def test_what_acts_at_run_time_is_measured(editor: Editor) -> None:
    edited = edited_tiny(editor, "gpt2", FACTS[:2])
    own = (FACTS[0].prompt, FACTS[0].target)
    (one,) = edited.attribute(own)
    assert not one.effects
    assert {effect.ids for effect in one.measured} == {("paris",), ("осло",)}
    moved = {effect.ids[0]: effect.log_prob for effect in one.measured}
    assert moved["paris"] == pytest.approx(one.change, abs=1e-4)
    assert moved["осло"] == pytest.approx(0, abs=1e-4)
    assert abs(one.change) > 1e-3


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_two_stacks(family: str) -> None:
    editor = FT(lr=1e-2, steps=4)
    edited = edited_tiny(editor, family, FACTS[:1])
    edited.edit(FACTS[1])
    (one,) = edited.attribute(ASKED[0], measure=2)
    assert {effect.stack for effect in one.effects} == {"decoder"}
    assert {effect.ids for effect in one.effects} == {("paris",), ("осло",)}
    assert len(one.measured) == 2
    # Small steps: what is left out changes the answer about as the first order says.
    for measured in one.measured:
        summed = sum(e.log_prob for e in one.effects if e.ids == measured.ids)
        assert summed * measured.log_prob > 0


def test_a_weight_that_is_used_elsewhere_too_is_measured_only() -> None:
    edited = edited_tiny(memit(), "gpt2", FACTS[:1])
    embedding = next(n for n, _ in edited.model.named_parameters() if "wte" in n)
    change = torch.zeros(weight(edited.model, embedding).shape)
    change[5:80] = 0.3
    edited.commit(Delta(("table",), {embedding: Dense(change)}))
    (one,) = edited.attribute(ASKED[0])
    assert {effect.ids for effect in one.effects} == {("paris",)}
    assert [effect.ids for effect in one.measured] == [("table",)]


def test_errors_say_what_to_do() -> None:
    edited = edited_tiny(memit(), "gpt2", FACTS[:1])
    with pytest.raises(DataError, match="a pair of prompt and answer"):
        edited.attribute(["The capital of Italy is"])
    with pytest.raises(DataError, match="has no token after the prompt"):
        edited.attribute(("The capital of Italy is", " "))
    edited.undo()
    with pytest.raises(LedgerError, match="no edit is in force"):
        edited.attribute(ASKED)


def test_a_row_keeps_everything() -> None:
    edited = edited_tiny(memit(), "gpt2")
    (one,) = edited.attribute(AskedFact(*ASKED[2]), measure=1)
    assert FactAttribution.from_row(one.to_row()) == one
    with pytest.raises(DataError, match="not an attribution of this version"):
        FactAttribution.from_row({"fact": {}})


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOL / "config.json").exists(),
    reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
)
def test_on_a_real_model_the_neighbour_moves_with_its_edit() -> None:
    model, tokenizer = load_language_model(str(SMOL))
    facts = [
        EditRequest("france", "The capital of France is", "Oslo", "France"),
        EditRequest("einstein", "Albert Einstein was born in", "Madrid", "Albert Einstein"),
        EditRequest("japan", "The currency of Japan is the", "peso", "Japan"),
    ]
    editor = MEMIT(layers=[3, 4, 5], statistics="identity", steps=20, moment_weight=1.0)
    edited: EditedModel = editor.edit_model(model, tokenizer, facts)
    asked = [
        ("France's capital city is", "Paris", "France"),
        ("The physicist Albert Einstein was born in", "Ulm", "Albert Einstein"),
        ("People in Japan pay with the", "yen", "Japan"),
    ]
    before = weights_hash(model)
    found = edited.attribute(asked, measure=1)
    assert weights_hash(model) == before
    # A question that hardly moved has no one edit to name.
    moved = [fact.id for one, fact in zip(found, facts, strict=True) if one.change < -1]
    assert {"einstein", "japan"} <= set(moved)
    for one, fact in zip(found, facts, strict=True):
        assert one.change < 0
        if fact.id in moved:
            assert one.by_edit()[0][0] == (fact.id,)
        # One commit holds all three: without it the model is the unedited one.
        assert one.measured[0].log_prob == pytest.approx(one.change, abs=1e-3)
    for question in asked:
        for layer in shares_at_key(edited, question):
            assert len(layer.shares) == len(facts)
            summed = torch.stack([share for _, share in layer.shares]).sum(0)
            assert (summed - layer.change).abs().max() <= 1e-6


def test_the_edit_that_broke_the_model_is_measured_and_no_other_is_named() -> None:
    edited = edited_tiny(memit(), "qwen3")
    name = "model.layers.0.mlp.up_proj.weight"
    shape = weight(edited.model, name).shape
    edited.commit(Delta(("boom",), {name: Dense(torch.full(shape, 3e38))}))
    assert all(bool(torch.isfinite(value).all()) for value in edited.model.parameters())
    (one,) = edited.attribute(ASKED[0], measure=1)
    assert "most by edit boom" in one.sentence()
    assert "measured" in one.sentence()
    assert one.leading() == ("boom",)
    assert "no edit is named" in replace(one, measured=()).sentence()
    row = json.loads(json.dumps(one.to_row(), allow_nan=False))
    assert row["first_order"] is None
    assert FactAttribution.from_row(row).sentence() == one.sentence()
