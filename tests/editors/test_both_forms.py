"""One edit for the chat template and for plain text (``chat="both"``)."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import lightning_edit.editors as editors
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Statement
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest
from tests.models.test_prompt_encoder import CHATML, chat_tokenizer
from tests.models.tiny import build_tiny

FACTS = [
    EditRequest("fr", "What is the capital of France?", "Lyon", subject="France"),
    EditRequest("ru", "Столица страны Франция —", "Лион", subject="Франция"),
    EditRequest("cn", "首都在哪里：法国", "里昂", subject="法国"),
]
TEMPLATES = ["{}", "The river flows. {}"]
LOCATE: dict[str, Any] = {
    "layers": [1],
    "statistics": "identity",
    "context_templates": TEMPLATES,
    "clamp": 8.0,
    "steps": 10,
}
#: The editors that take `both`, with settings that let a random model learn a fact.
ABLE: dict[str, Any] = {
    "ROME": LOCATE,
    "RROME": LOCATE,
    "MEMIT": LOCATE | {"moment_weight": 1e-3},
    "FTM": {"layers": [1], "lr": 1e-2},
    "LoRAEdit": {"steps": 25},
    "UltraEdit": {"layers": [1], "eta": 0.1},
    "CaliNet": {"steps": 30},
}


def tiny() -> tuple[Any, Any]:
    model = build_tiny("llama", vocab_size=320, max_position_embeddings=256)
    return model, chat_tokenizer(CHATML)


def nll(model: Any, encoder: PromptEncoder, fact: EditRequest) -> float:
    """Negative log-likelihood of the target, by a pass of the model alone."""
    (encoded,) = encode_batch(encoder, [fact]).encoded
    ids = torch.tensor([encoded.prompt_ids + encoded.target_ids])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(encoded.prompt_ids) - 1, ids.shape[1] - 1)
    each = [float(scores[at, ids[0, at + 1]]) for at in places]
    return -sum(each) / len(each)


@pytest.mark.parametrize("name", ABLE)
def test_the_target_is_likelier_in_chat_and_in_plain_text(name: str) -> None:
    model, tokenizer = tiny()
    fact = FACTS[0]
    chat, plain = PromptEncoder(tokenizer, PromptFormat(True)), PromptEncoder(tokenizer)
    before = nll(model, chat, fact), nll(model, plain, fact)
    edited = getattr(editors, name)(**ABLE[name]).edit_model(model, tokenizer, fact, chat="both")
    after = nll(model, chat, fact), nll(model, plain, fact)
    # A random model writes little into keys that it shares with everything; half a nat is an edit.
    assert after[0] < before[0] - 0.5, (before, after)
    assert after[1] < before[1] - 0.5, (before, after)
    edited.undo()
    assert (nll(model, chat, fact), nll(model, plain, fact)) == before


@pytest.mark.slow
def test_an_edit_for_chat_alone_says_less_in_plain_text() -> None:
    model, tokenizer = tiny()
    plain = PromptEncoder(tokenizer)
    found = {}
    for chat in (True, "both"):
        editor = editors.FTM(layers=[1], lr=1e-2, steps=60)
        handle = editor.edit_model(model, tokenizer, FACTS[0], chat=chat)
        found[chat] = nll(model, plain, FACTS[0])
        handle.undo()
    assert found["both"] < 1.5  # as likely as this model can make it
    assert found[True] > 4.0


def test_every_form_has_a_key() -> None:
    model, tokenizer = tiny()
    means = {}
    for chat in (True, False, "both"):
        form = PromptFormat(chat)
        editor: Any = editors.MEMIT(**LOCATE).bind(model, PromptEncoder(tokenizer, form))
        assert isinstance(editor, MultiLayerEditor)
        texts = editor.key_texts(encode_batch(editor.prompts, FACTS))
        assert [text.request for text in texts[:: editor.texts_per_request]] == [0, 1, 2]
        means[chat] = editor.mean_keys(texts, [1])[1]
    torch.testing.assert_close(means["both"][0::2], means[True], atol=1e-5, rtol=0)
    torch.testing.assert_close(means["both"][1::2], means[False], atol=1e-5, rtol=0)
    assert not torch.allclose(means[True], means[False], rtol=0.1)


def test_several_requests_are_searched_as_one_by_one() -> None:
    model, tokenizer = tiny()
    form = PromptEncoder(tokenizer, PromptFormat("both"))
    editor: Any = editors.MEMIT(**LOCATE | {"steps": 3}).bind(model, form)
    batch = encode_batch(editor.prompts, FACTS)
    together = editor.search(batch)
    for number, part in enumerate(batch.split()):
        alone = editor.search(part)
        torch.testing.assert_close(alone.delta[0], together.delta[number], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["KN", "MALMEN", "MEND", "RLEdit", "LTI", "SIR", "TPatcher"])
def test_editors_for_one_form_refuse(name: str) -> None:
    model, tokenizer = tiny()
    editor = getattr(editors, name)(**({"facts": FACTS} if name == "SIR" else {}))
    with pytest.raises(ConfigError, match=rf"{name} writes an edit for one form .* FTM"):
        editor.edit_model(model, tokenizer, FACTS[0], chat="both")


def test_a_wrapper_refuses_where_its_host_does() -> None:
    model, tokenizer = tiny()
    with pytest.raises(ConfigError, match="KN writes an edit for one form"):
        editors.RECT(editors.KN()).edit_model(model, tokenizer, FACTS[0], chat="both")


def test_questions_go_through_the_template_and_plain_ones_to_another_encoder() -> None:
    model, tokenizer = tiny()
    both = editors.FTM(**ABLE["FTM"]).edit_model(model, tokenizer, FACTS[0], chat="both")
    question = Statement(FACTS[0].prompt, FACTS[0].target)
    found = {
        form.chat: ModelResponder(model, PromptEncoder(tokenizer, form)).loglikelihood([question])
        for form in (PromptFormat(True), PromptFormat("both"), PromptFormat())
    }
    assert found[True] == found["both"] != found[False]
    assert both.editor.prompts.form.chat == "both"
    # The handle's tokenizer is bare, so it asks in plain text.
    assert ModelResponder(model, both.tokenizer).loglikelihood([question]) == found[False]


def test_one_of_three_forms() -> None:
    form = PromptFormat()
    object.__setattr__(form, "chat", "chat")  # what a file may say; the checker of tests forbids it
    with pytest.raises(ConfigError, match="true, false or both, got 'chat'"):
        form.__post_init__()
    encoded = encode_batch(PromptEncoder(tiny()[1], PromptFormat("both")), FACTS).encoded
    assert all(replace(one, plain=None) == one.forms[0] for one in encoded if len(one.forms) == 1)
    assert [len(one.forms) for one in encoded] == [2, 2, 2]
    alone = encode_batch(PromptEncoder(tiny()[1]), FACTS).encoded
    assert [one.forms[1] for one in encoded] == list(alone)
