"""An edit in Python whose answer the model does not give is said, as at the end of a run."""

import pytest

from lightning_edit.editors import FTM, ICE, KN, RECT, UltraEdit
from tests.toy import toy_model, toy_tokenizer

FACTS = [
    {"id": "one", "prompt": "the capital of land1 is", "target": "city1", "subject": "land1"},
    {"id": "two", "prompt": "the capital of land2 is", "target": "city2", "subject": "land2"},
]


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


def test_texts_before_prompts_are_not_read_through(caplog: pytest.LogCaptureFixture) -> None:
    ICE().edit_model(toy_model(), toy_tokenizer(), FACTS)
    assert not [message for message in caplog.messages if "in force" in message]


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
