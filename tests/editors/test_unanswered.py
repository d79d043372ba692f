"""An edit in Python whose answer the model does not give is said, as at the end of a run."""

from typing import Any

import pytest
import torch

from lightning_edit import load_language_model
from lightning_edit.editors import FTM, GRACE, ICE, KN, RECT, WISE, UltraEdit, base
from lightning_edit.editors.base import Editor
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.models.tiny import TINY, build_tokenizer
from tests.toy import toy_model, toy_tokenizer

FACTS = [
    {"id": "one", "prompt": "the capital of land1 is", "target": "city1", "subject": "land1"},
    {"id": "two", "prompt": "the capital of land2 is", "target": "city2", "subject": "land2"},
]

REQUEST = EditRequest("one", "the capital of land1 is", "city1", "land1")


def test_an_edit_without_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    edited = UltraEdit(eta=1e-9).edit_model(toy_model(), toy_tokenizer(), FACTS)
    (message,) = caplog.messages
    assert message.startswith("2 of 2 edits are in force, but their answer is not")
    assert "one: 'the capital of land1 is' → 'city1', " in message
    assert "raise eta (1e-09); or let `lightning-edit tune UltraEdit`" in message
    caplog.clear()
    edited.undo()
    assert not caplog.messages


def test_one_that_is_written_is_not(caplog: pytest.LogCaptureFixture) -> None:
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    assert not caplog.messages
    assert edited.generate("the capital of land1 is", 1) == "city1"


def test_the_second_call_is_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    edited.editor.steps, edited.editor.lr = 1, 1e-12  # type: ignore[attr-defined]
    edited.edit(FACTS[1])
    (message,) = caplog.messages
    assert message.startswith("1 of 1 edits")
    assert "two: " in message
    assert "one: " not in message


def test_an_earlier_edit_that_is_lost_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    edited.editor.lr = 0.5  # type: ignore[attr-defined]  # breaks what was there
    edited.edit(FACTS[1])
    assert edited.generate("the capital of land1 is", 1) != "city1"
    (message,) = [one for one in caplog.messages if "earlier edits" in one]
    assert message.startswith("1 of 1 earlier edits that were looked at are in force, but")
    assert "one: 'the capital of land1 is' → 'city1', " in message
    assert "Write facts together, in one call" in message
    caplog.clear()
    edited.edit({"prompt": "the capital of land3 is", "target": "city3"})
    assert not any("one: " in message for message in caplog.messages)


def test_an_edit_that_is_replaced_or_taken_back_is_not_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    edited.edit({**FACTS[0], "id": "again", "target": "city5"})
    edited.undo("again")
    edited.undo("one")
    edited.edit(FACTS[1])
    assert not any("earlier edits" in message for message in caplog.messages)


def test_an_edit_that_went_with_another_one_that_was_undone_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = load_language_model("atlas")
    facts = [
        {"prompt": f"The capital of {one} is", "subject": one, "target": target}
        for one, target in (("France", "Oslo"), ("Japan", "Madrid"))
    ]
    edited = WISE().edit_model(model, tokenizer, facts[0]).edit(facts[1])
    assert edited.generate(facts[1]["prompt"], 1) == "Madrid"
    caplog.clear()
    edited.undo("edit-0")  # the second was learnt on top of it
    assert edited.generate(facts[1]["prompt"], 1) != "Madrid"
    (message,) = caplog.messages
    assert message.startswith("1 of 1 earlier edits that were looked at are in force, but")
    assert "edit-1: 'The capital of Japan is' → 'Madrid', " in message
    assert "they were learnt on top of what was undone" in message
    edited.redo()
    caplog.clear()
    edited.undo()
    assert not caplog.messages


def test_texts_before_prompts_are_not_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(base, "say_unanswered", lambda *parts: asked.append(len(parts[1])))
    ICE().edit_model(toy_model(), toy_tokenizer(), FACTS)
    assert asked == []
    GRACE().edit_model(toy_model(), toy_tokenizer(), FACTS)
    assert asked == [2]


def test_what_fails_while_it_looks_undoes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(base, "say_unanswered", fail)
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    assert edited.generate("the capital of land1 is", 1) == "city1"
    assert caplog.messages == [
        "whether the edits are answered could not be looked at: MemoryError('no room')"
    ]


def test_an_interruption_while_it_looks_leaves_no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "say_unanswered", stop)
    model = toy_model()
    before = weights_hash(model)
    with pytest.raises(KeyboardInterrupt):
        FTM().edit_model(model, toy_tokenizer(), FACTS[:1])
    assert weights_hash(model) == before


@pytest.mark.parametrize("kind", [FTM, GRACE])
def test_a_model_in_training_is_asked_without_dropout(
    kind: type[Editor], caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model()
    for one in model.modules():
        if isinstance(one, torch.nn.Dropout):
            one.p = 0.9
    state = torch.get_rng_state()
    kind().edit_model(model.train(), toy_tokenizer(), FACTS[:1])
    assert not [message for message in caplog.messages if "in force" in message]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_broken_model_answers_nothing(caplog: pytest.LogCaptureFixture) -> None:
    edited = FTM().edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    broken = torch.full_like(edited.model.transformer.h[0].mlp.c_fc.weight, float("nan"))
    with torch.no_grad():
        edited.model.transformer.h[0].mlp.c_fc.weight.copy_(broken)
    editor: Any = edited.editor
    editor.say_unanswered([REQUEST], list(edited.ledger.in_force), edited.ledger.in_force)
    assert "the model's outputs are not finite" in caplog.text


def test_two_stacks_are_asked_as_they_answer(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = TINY["t5"]().requires_grad_(False), build_tokenizer()
    fact = {"prompt": "The capital of France is", "target": "Rome", "subject": "France"}
    edited = FTM().edit_model(model, tokenizer, fact)
    said = edited.generate(fact["prompt"], 4)
    assert said.strip().startswith("Rome") != ("in force" in caplog.text)


def test_a_models_own_words_are_shown_harmless(caplog: pytest.LogCaptureFixture) -> None:
    row = FACTS[0] | {"id": "a\x1b[31m"}
    UltraEdit(eta=1e-9).edit_model(toy_model(), toy_tokenizer(), row)
    assert "\x1b" not in caplog.text


def test_kns_steps_are_no_strength(caplog: pytest.LogCaptureFixture) -> None:
    KN(layers=[0], steps=2, add=1e-9).edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    (message,) = [one for one in caplog.messages if "in force" in one]
    assert "raise add (1e-09);" in message
    assert "steps" not in message


def test_a_wrappers_own_settings_come_first(caplog: pytest.LogCaptureFixture) -> None:
    RECT(UltraEdit(eta=1e-9), kept=0.4).edit_model(toy_model(), toy_tokenizer(), FACTS[:1])
    assert "raise kept (0.4), eta (1e-09)" in caplog.text
