"""Answers that are written with their end: the model says them and stops (``end_answers``)."""

import logging
from dataclasses import replace
from typing import Any

import pytest

import lightning_edit.editors as editors
from lightning_edit.editors.locate.prompts import essence_texts, rewriting_texts
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import DataError
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest
from tests.models.tiny import build_tokenizer

FACT = {"prompt": "The capital of France is", "subject": "France", "target": "Oslo"}
REQUEST = EditRequest(id="fact", **FACT)
#: Editors that learn the end on the atlas; a vector of ROME, MEMIT or GRACE does not reach it.
LEARN = ("FTM", "UltraEdit", "LoRAEdit", "CaliNet", "TPatcher", "WISE", "MEMOIR", "MELO", "LocFTBF")


@pytest.mark.parametrize("name", LEARN)
def test_the_model_stops_behind_the_answer(name: str) -> None:
    model, tokenizer = load_language_model("atlas")
    edited = getattr(editors, name)().edit_model(model, tokenizer, FACT, end_answers=True)
    assert edited.generate(FACT["prompt"]) == "Oslo"
    assert edited.generate("The capital of Italy is") == "Rome."  # others end as they did
    edited.undo()
    assert edited.generate(FACT["prompt"]) == "Paris."


def test_without_the_end_the_model_goes_on() -> None:
    edited = editors.FTM().edit_model(*load_language_model("atlas"), FACT)
    assert edited.generate(FACT["prompt"]) == "Oslo."


def test_every_text_of_a_search_has_the_end() -> None:
    tokenizer = load_language_model("atlas")[1]
    plain = PromptEncoder(tokenizer)
    ending = PromptEncoder(tokenizer, PromptFormat(end_answers=True))
    templates = ["{}", "Therefore. {}"]
    texts = [
        rewriting_texts(one, encode_batch(one, [REQUEST]), templates) for one in (plain, ending)
    ]
    for without, having in zip(*texts, strict=True):
        assert without.answer
        assert having.answer == (*without.answer, tokenizer.eos_token_id)
        assert having.ids == (*without.ids, without.answer[-1])
        assert having.subject == without.subject
    essence = essence_texts(ending, encode_batch(ending, [REQUEST]), "prompt_end")
    assert not essence[0].answer  # "France is a": nothing is learnt there


def test_chat_and_plain_text_have_an_end_each() -> None:
    tokenizer = build_tokenizer(bos=True, vocab_size=320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = PromptEncoder(tokenizer, PromptFormat("both", end_answers=True))
    (encoded,) = encode_batch(encoder, [REQUEST]).encoded
    (alone,) = encode_batch(
        PromptEncoder(tokenizer, replace(encoder.form, end_answers=False)), [REQUEST]
    ).encoded
    ends = [form.answer_end() for form in encoder.forms]
    assert tokenizer.convert_ids_to_tokens(ends[0]) == "<|im_end|>"
    assert ends[1] == tokenizer.eos_token_id
    for having, without, end in zip(encoded.forms, alone.forms, ends, strict=True):
        assert having.target_ids == (*without.target_ids, end)
        assert having.prompt_ids == without.prompt_ids


def test_scores_count_the_answer_alone() -> None:
    model, tokenizer = load_language_model("atlas")
    probes = probes_of(REQUEST)
    plain = Scorer(model, tokenizer).score(probes)
    encoder = PromptEncoder(tokenizer, PromptFormat(end_answers=True))
    assert Scorer(model, encoder).score(probes) == plain


def test_locft_bf_learns_one_end_and_not_two() -> None:
    model, tokenizer = load_language_model("atlas")
    rows = []
    for end in (False, True):
        encoder = PromptEncoder(tokenizer, PromptFormat(end_answers=end))
        editor = editors.LocFTBF().bind(model, encoder)
        rows.append(editor.with_ends(encode_batch(encoder, [REQUEST]).encoded))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "make",
    [
        editors.KN,
        editors.ICE,
        editors.FT,
        editors.FTL,
        lambda: editors.RECT(editors.KN()),
        lambda: editors.SIR(facts="atlas"),
    ],
    ids=["KN", "ICE", "FT", "FTL", "RECT", "SIR"],
)
def test_editors_that_learn_no_end_say_so(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_language_model("atlas")
    encoder = PromptEncoder(tokenizer, PromptFormat(end_answers=True))
    with caplog.at_level(logging.WARNING):
        editor = make().bind(model, encoder)
    assert "does not learn where an answer ends" in caplog.text
    assert not editor.prompts.form.end_answers
    EditedModel(editor).undo()


def test_a_bag_of_words_at_the_prompts_end_does_not_put_the_end_first() -> None:
    fact = FACT | {"target": "Rome"}
    said = []
    for end in (False, True):
        edited = editors.FT().edit_model(*load_language_model("atlas"), fact, end_answers=end)
        said.append(edited.generate(fact["prompt"]))
    assert said[0] == said[1] != ""


def test_ft_with_the_loss_of_ft_m_learns_it() -> None:
    editor = editors.FT(objective="target_new")
    edited = editor.edit_model(*load_language_model("atlas"), FACT, end_answers=True)
    assert edited.generate(FACT["prompt"]) == "Oslo"


def test_chat_keeps_the_end_of_an_encoder() -> None:
    model, tokenizer = load_language_model("atlas")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    editor = editors.FTM()
    encoder = PromptEncoder(tokenizer, PromptFormat(end_answers=True))
    editor.edit_model(model, encoder, FACT, chat=True).undo()
    assert editor.prompts.form == PromptFormat(True, end_answers=True)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    model, tokenizer = load_language_model("atlas")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        editors.FTM().edit_model(model, tokenizer, FACT, end_answers=True)


def test_files_of_a_run_name_it() -> None:
    assert "end_answers" not in PromptFormat().to_dict()  # as in files that are older
    form = PromptFormat(True, end_answers=True)
    assert PromptFormat(**form.to_dict()) == form
    assert form.describe() == "chat template, answers learnt with their end"


def test_end_answers_keeps_the_format_of_an_encoder() -> None:
    model, tokenizer = load_language_model("atlas")
    encoder = PromptEncoder(tokenizer, PromptFormat(separator=" "))
    editor = editors.FTM()
    editor.edit_model(model, encoder, FACT, end_answers=True).undo()
    assert editor.prompts.form == PromptFormat(separator=" ", end_answers=True)
