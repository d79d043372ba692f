"""Effects of texts on a real instruct model: new answers of COUNTERFACT, plain and in a chat."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lightning_edit.datamodules.formats import read_requests
from lightning_edit.editors import ICE, IKE, RAG, MeLLo, MemPrompt
from lightning_edit.editors.prompting.base import PromptingEditor
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.text import starts_with_answer
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest
from tests.conftest import shared_path

SMOL = Path(os.environ.get("LIGHTNING_EDIT_INSTRUCT_MODEL", Path(__file__).parents[4] / "smol"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SMOL / "config.json").exists(),
        reason=f"no instruct model in {SMOL}; set LIGHTNING_EDIT_INSTRUCT_MODEL to a folder",
    ),
]


@cache
def language_model() -> tuple[Any, Any]:
    return load_language_model(str(SMOL))


@cache
def counterfact() -> list[EditRequest]:
    return read_requests(str(shared_path("data/counterfact/counterfact_500.json"))).requests


def ask(
    editor: PromptingEditor, requests: list[EditRequest], prompts: list[str], chat: bool = False
) -> list[str]:
    model, tokenizer = language_model()
    encoder = PromptEncoder(tokenizer, PromptFormat(chat))
    editor.bind(model, encoder)
    deltas = [editor.edit(encode_batch(encoder, [request])) for request in requests]
    editor.runtime().install(deltas)
    return editor.responder(deltas, 16).generate_until([Question(one, 16) for one in prompts])


def share(texts: list[str], requests: list[EditRequest]) -> float:
    pairs = zip(texts, requests, strict=True)
    return sum(starts_with_answer(text, (one.target,)) for text, one in pairs) / len(requests)


def test_facts_of_counterfact_are_answered_and_a_threshold_keeps_the_neighbours() -> None:
    requests = counterfact()[:6]
    own = [request.prompt for request in requests]
    near = [request.probes[0].prompt for request in requests]
    model, tokenizer = language_model()
    bare = ModelResponder(model, tokenizer, 16)
    before = bare.generate_until([Question(one, 16) for one in near])
    assert share(bare.generate_until([Question(one, 16) for one in own]), requests) == 0
    texts = ask(RAG(k=1, threshold=None), requests, own + near)
    assert share(texts[:6], requests) == 1.0  # 12 of 12 when it was measured
    texts = ask(RAG(k=1, threshold=0.5), requests, own + near)
    assert share(texts[:6], requests) == 1.0
    kept = sum(one == other for one, other in zip(texts[6:], before, strict=True))
    assert kept >= 3  # 9 of 12 when it was measured; 0 without a threshold


def test_a_fact_alone_and_with_demonstrations_is_answered() -> None:
    requests = counterfact()[:4]
    corpus = counterfact()[100:200]
    for make in (ICE, lambda: ICE("new_fact"), lambda: IKE(corpus, k=8)):
        texts = [ask(make(), [request], [request.prompt])[0] for request in requests]
        assert share(texts, requests) >= 0.75


def test_a_chat_says_the_new_answer_in_its_own_words() -> None:
    """In a chat the model answers half a sentence with a whole one: nothing begins with it."""
    requests = counterfact()[:6]
    prompts = [request.prompt for request in requests]
    model, tokenizer = language_model()
    bare = ModelResponder(model, PromptEncoder(tokenizer, PromptFormat(True)), 16)
    before = bare.generate_until([Question(one, 16) for one in prompts])
    assert said(before, requests) == 0
    assert said(ask(RAG(k=1, threshold=None), requests, prompts, chat=True), requests) >= 3
    texts = [ask(ICE(), [one], [one.prompt], chat=True)[0] for one in requests]
    assert said(texts, requests) >= 3


def said(texts: list[str], requests: list[EditRequest]) -> int:
    pairs = zip(texts, requests, strict=True)
    return sum(request.target.casefold() in text.casefold() for text, request in pairs)


def test_a_dialogue_about_an_edited_fact_comes_to_an_end() -> None:
    fact = EditRequest("a", "The capital of France is", "Oslo")
    editor = MeLLo(turn_tokens=64)
    (text,) = ask(editor, [fact], ["What is the capital of France?"])
    (dialogue,) = editor._dialogues.values()
    assert dialogue is not None
    assert dialogue.facts[:1] == ("The capital of France is Oslo",)
    assert bool(text) == dialogue.answered
    assert editor.context_use.failed == (not dialogue.answered)


QUESTIONS = [
    EditRequest("a", "What is the capital of France?", "Lyon", "France"),
    EditRequest("b", "Who wrote the novel Emma?", "Charles Dickens", "Emma"),
    EditRequest("c", "What is the currency of Japan?", "peso", "Japan"),
]
UNRELATED = ["How many legs does a spider have?", "Name a colour of the rainbow.", "Hello!"]


@pytest.mark.parametrize(
    ("name", "answered"),
    # Demonstrations are no help to so small a model in a chat: it goes on with other facts, and
    # only the likelihood of the new answers says that they were read.
    [("RAG", 2), ("MemPrompt", 1), ("IKE", 0)],
)
def test_in_a_chat_new_facts_are_read_and_other_questions_keep_their_bits(
    name: str, answered: int
) -> None:
    facts, scoped = QUESTIONS, True
    make: PromptingEditor = RAG(k=1, threshold=0.5) if name == "RAG" else MemPrompt()
    if name == "IKE":  # made for statements, and without a threshold
        make, facts, scoped = IKE(counterfact()[100:140], k=4), counterfact()[:3], False
    model, tokenizer = language_model()
    encoder, own = PromptEncoder(tokenizer, PromptFormat(True)), [one.prompt for one in facts]
    bare, editor = ModelResponder(model, encoder, 16), make.bind(model, encoder)
    deltas = [editor.edit(encode_batch(encoder, [request])) for request in facts]
    editor.runtime().install(deltas)
    responder = editor.responder(deltas, 16)
    for one in facts:
        rendered = encoder.decode(encoder.prompts([editor.told_prompt(one.prompt)])[0])
        assert f"user\n{editor.told_prompt(one.prompt)}" in rendered
        assert one.target in rendered.rpartition("assistant")[0]  # in the user's turn

    prompts = [Question(one, 16) for one in own]
    texts = responder.generate_until(prompts)
    assert said(bare.generate_until(prompts), facts) == 0
    assert said(texts, facts) >= answered, texts
    # What is generated is what the scores take for the model's own choice.
    pairs = [Statement(one, text) for one, text in zip(own, texts, strict=True)]
    assert all(score.is_greedy for score in responder.loglikelihood(pairs))
    targets = [Statement(one.prompt, one.target) for one in facts]
    before, after = bare.loglikelihood(targets), responder.loglikelihood(targets)
    assert all(one.total < other.total for one, other in zip(after, before, strict=True))

    others = [Statement(one, "Eight or blue") for one in UNRELATED]
    asked = [Question(one, 12) for one in UNRELATED]
    same = responder.loglikelihood(others) == bare.loglikelihood(others)
    same &= responder.generate_until(asked) == bare.generate_until(asked)
    assert same == scoped
