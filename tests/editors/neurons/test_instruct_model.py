"""T-Patcher and CaliNET on a real instruct model, as plain text and through its chat template."""

import os
from pathlib import Path

import pytest

from lightning_edit.editors import CaliNet, TPatcher
from lightning_edit.editors.base import Editor
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat

SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[4] / "smol"))
FACTS = [
    {"prompt": "The capital of France is", "subject": "France", "target": "Oslo"},
    {"prompt": "北京是哪个国家的首都?", "subject": "北京", "target": "Canada"},
]
OTHERS = ["The capital of Italy is", "The sun rises in the", "Water is made of hydrogen and"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SMOL / "config.json").exists(),
        reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
    ),
]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("kind", [TPatcher, CaliNet])
def test_facts_of_two_scripts_are_written(kind: type[Editor], chat: bool) -> None:
    model, tokenizer = load_language_model(str(SMOL))
    encoder = PromptEncoder(tokenizer, PromptFormat(chat))
    questions = [Question(prompt, 6) for prompt in OTHERS]
    before = ModelResponder(model, encoder).generate_until(questions)
    editor = kind(memory_tokens=2048) if kind is TPatcher else kind()
    handle = editor.edit_model(model, encoder, FACTS)
    for fact in FACTS:
        assert handle.generate(fact["prompt"], 8).strip().startswith(fact["target"])
    after = editor.responder(handle.ledger.in_force).generate_until(questions)
    if kind is TPatcher:  # CaliNET has nothing that would keep other answers
        assert sum(a == b for a, b in zip(before, after, strict=True)) >= 2
    handle.undo()
    assert ModelResponder(model, encoder).generate_until(questions) == before
