"""Answers that begin with line breaks: white space in front is no part of the first line."""

from functools import cache
from typing import Any

import pytest
import torch

from lightning_edit.editors import RAG
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.evaluation.scorer import Scorer, probes_of
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.types import EditRequest
from tests.models.test_prompt_encoder import CHATML, LLAMA2, chat_tokenizer
from tests.models.tiny import build_tiny

#: What the model says to a question, and the line that is its answer.
SAID = {
    "What is the capital of France?": ("\nRome\nLyon", "Rome"),
    "What is the capital of Italy?": ("\n\n \n Paris\n", "Paris"),
    "Where does Lyon lie?": ("Avignon\nRome", "Avignon"),
}


@cache
def speaker(template: str) -> tuple[Any, PromptEncoder]:
    """Train a tiny model to answer so, in a chat; without a template, in plain text."""
    model = build_tiny("llama", vocab_size=320, max_position_embeddings=256)
    form = PromptFormat(chat=bool(template))
    prompts = PromptEncoder.for_model(model, PromptEncoder(chat_tokenizer(template), form))
    tokenizer = prompts.tokenizer
    rows = [
        (prompt, tokenizer(said, add_special_tokens=False)["input_ids"])
        for prompt, (said, _) in zip(prompts.prompts(SAID), SAID.values(), strict=True)
    ]
    batch = AnswerRows.of(model, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(answer_logits(model, batch), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    return model.requires_grad_(False), prompts


def requests() -> list[EditRequest]:
    return [EditRequest(q, q, line, rephrases=(q,)) for q, (_, line) in SAID.items()]


TEMPLATES = pytest.mark.parametrize(
    "template", [CHATML, LLAMA2, ""], ids=["own", "Llama 2", "none"]
)


@TEMPLATES
def test_the_model_does_begin_with_line_breaks(template: str) -> None:
    """Else nothing is tested below."""
    model, prompts = speaker(template)
    for prompt, (said, _) in zip(prompts.prompts(SAID), SAID.values(), strict=True):
        size = len(prompts.tokenizer(said, add_special_tokens=False)["input_ids"])
        new = model.generate(torch.tensor([prompt]), max_new_tokens=size, do_sample=False)
        assert prompts.tokenizer.decode(new[0, len(prompt) :]) == said


@TEMPLATES
@pytest.mark.parametrize("modes", [("gen",), ("tf", "gen")], ids=["generated", "begun by the pass"])
def test_the_first_line_with_text_is_scored(template: str, modes: Any) -> None:
    model, prompts = speaker(template)
    scorer = Scorer(model, prompts, modes=modes)
    probes = [probe for one in requests() for probe in probes_of(one)]
    for one in scorer.score(probes):
        assert one.generated == SAID[one.prompt][1]
        assert (one.answer_gen, one.em_gen) == (1.0, 1.0)
    # What comes before the first line with text is white space alone: another word counts.
    other = EditRequest("x", "What is the capital of France?", "Lyon")
    (found,) = scorer.score(list(probes_of(other)))
    assert (found.generated, found.answer_gen) == ("Rome", 0.0)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_however_it_is_asked(batch_size: int) -> None:
    model, prompts = speaker(CHATML)
    asked = [Question(one, 12) for one in SAID]
    lines = [line for _, line in SAID.values()]
    assert ModelResponder(model, prompts, batch_size).generate_until(asked) == lines
    # An editor of texts asks through the same passes; out of scope of its facts it adds none.
    editor = RAG(k=1, threshold=1.0).bind(model, prompts)
    edited = EditedModel(editor)
    editor.last_ledger = edited.ledger
    edited.edit(EditRequest("a", "Where does Arles lie?", "Rome"))
    assert edited.responder(batch_size).generate_until(asked) == lines
    # Somebody who asks for the whole text gets it, without white space around it.
    whole = [said.strip() for said, _ in SAID.values()]
    texts = ModelResponder(model, prompts).generate_until(asked, stop=())
    assert all(text.startswith(one) for text, one in zip(texts, whole, strict=True))
