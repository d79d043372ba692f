"""Copies of handles and editors act on their own model, and PEFT's wrapper is a model too."""

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lightning_edit import load_language_model
from lightning_edit.editors import GRACE, MELO, MEMOIR, ROME, WISE, CaliNet, Editor, TPatcher

FACT = {"prompt": "The capital of France is", "subject": "France", "target": "Oslo"}
RUNTIME = [GRACE, MELO, MEMOIR, WISE, CaliNet, TPatcher]


def answer(model: Any, tokenizer: Any) -> str:
    """What plain transformers generates."""
    inputs = tokenizer(FACT["prompt"], return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0]
    return str(tokenizer.decode(new[inputs["input_ids"].shape[1] :])).split(".")[0].split("<")[0]


@pytest.mark.parametrize("kind", [ROME, *RUNTIME])
def test_a_copied_handle_takes_back_its_own_edits_alone(kind: type[Editor]) -> None:
    model, tokenizer = load_language_model("atlas")
    pristine = {name: value.clone() for name, value in model.state_dict().items()}
    edited = kind().edit_model(model, tokenizer, FACT)
    other = copy.deepcopy(edited)
    assert other.model is not model
    assert answer(other.model, tokenizer) == answer(model, tokenizer) == " Oslo"
    other.undo()
    assert answer(other.model, tokenizer) == " Paris"
    assert answer(model, tokenizer) == " Oslo"
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, pristine[name]), name
    assert type(other.model) is type(model)
    assert not other.model._forward_hooks
    other.edit(FACT)
    edited.undo()
    assert answer(other.model, tokenizer) == " Oslo"
    assert answer(model, tokenizer) == " Paris"


@pytest.mark.parametrize("kind", RUNTIME)
def test_a_bound_editor_can_be_sent_to_another_process(kind: type[Editor]) -> None:
    editor = kind().bind(*load_language_model("atlas"))
    sent: Editor = pickle.loads(pickle.dumps(editor))  # noqa: S301  # our own
    edited = sent.edit_model(sent.language_model, sent.tokenizer, FACT)
    assert answer(edited.model, edited.tokenizer) == " Oslo"
    assert answer(editor.language_model, editor.tokenizer) == " Paris"


# peft asks transformers in the old way.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", [MELO, MEMOIR, WISE])
def test_a_model_in_pefts_wrapper_generates_with_edits(kind: type[Editor]) -> None:
    model, tokenizer = load_language_model("atlas")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    edited = kind().edit_model(wrapped, tokenizer, FACT)
    assert answer(wrapped, tokenizer) == answer(model, tokenizer) == " Oslo"
    edited.undo()
    assert answer(wrapped, tokenizer) == " Paris"
