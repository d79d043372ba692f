"""SERAC on T5 and BART, and with a T5 as counterfactual model of another model (the paper's)."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from lightning_edit.editors.routing.memory import ScopeMemory, stored_delta
from lightning_edit.editors.routing.neighbours import prompt_vectors
from lightning_edit.editors.routing.networks import (
    describe_network,
    first_blocks,
    rebuild_network,
)
from lightning_edit.editors.routing.scope_batch import ScopeSampler
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.prompt_encoder import PromptText
from lightning_edit.models.weights import weights_hash
from tests.editors.routing.routing import PROMPTS, REQUESTS, VOCABULARY, language_model, tuned
from tests.editors.routing.test_serac_training import Facts, facts, pytestmark, small, trainer
from tests.models.tiny import build_tiny, build_tokenizer

__all__ = ["pytestmark"]  # the same warnings of Lightning

GATE = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
QUESTIONS = [Question(prompt, 4) for prompt in PROMPTS]


def two_stacks(kind: str, **changes: Any) -> tuple[Any, Any]:
    """A tiny model of any script."""
    gate = GATE if "gated" in kind else {}
    model = build_tiny(kind.split()[0], vocab_size=VOCABULARY, **(gate | changes))
    return model.requires_grad_(False), build_tokenizer(eos=True, vocab_size=VOCABULARY)


def silence_bytes(model: Any, tokenizer: Any) -> None:
    """Let random weights only answer what can be spelled: part of a letter reads as another token.

    A head that is tied to its embeddings gives a row of zeros the logit 0.
    """
    spelled = [tokenizer.decode([token]) for token in range(VOCABULARY)]
    bare = [token for token, text in enumerate(spelled) if not (text.isascii() and text.isalnum())]
    with torch.no_grad():
        model.get_input_embeddings().weight[bare] = 0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["t5", "t5 gated", "bart"])
def test_the_first_blocks_of_both_stacks_make_a_smaller_model(kind: str) -> None:
    model, _ = two_stacks(kind)
    ids, labels = torch.tensor([[5, 7, 9, 2]]), torch.tensor([[8, 6, 2]])
    whole, small_one = first_blocks(model, 99), first_blocks(model, 1)
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=labels).logits
        assert torch.equal(whole(input_ids=ids, labels=labels).logits, wanted)
        cut = small_one(input_ids=ids, labels=labels).logits
        assert cut.shape == wanted.shape
        assert not torch.equal(cut, wanted)
        # From its description, as a checkpoint has it: T5 1.1 does not scale before its head.
        again = rebuild_network("language-model", describe_network(small_one))
        again.load_state_dict(small_one.state_dict())
        assert torch.equal(again(input_ids=ids, labels=labels).logits, cut)
    stacks = small_one.get_encoder(), small_one.get_decoder()
    assert [len(getattr(one, "block", None) or one.layers) for one in stacks] == [1, 1]


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("mixing", ["hard", "soft"])
def test_prompts_are_sent_to_one_of_two_models_or_mixed(kind: str, mixing: str) -> None:
    model, tokenizer = two_stacks(
        kind, **({"max_position_embeddings": 256} if kind == "bart" else {})
    )
    silence_bytes(model, tokenizer)
    editor = tuned(model, tokenizer, mixing=mixing, counterfactual="scratch")
    silence_bytes(editor.other, tokenizer)
    assert editor.other.config.is_encoder_decoder
    assert editor.one_vocabulary
    before = weights_hash(model)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    responder = handle.responder()
    memory = ScopeMemory(editor.scope)
    memory.install([stored_delta(REQUESTS)])
    choices = memory.choose(PROMPTS)
    assert {choice.inside for choice in choices.values()} == {True, False}
    texts = responder.generate_until(QUESTIONS, ())
    assert texts == [responder.generate_until([one], ())[0] for one in QUESTIONS]
    statements = [
        Statement(one.prompt, text, "") for one, text in zip(QUESTIONS, texts, strict=True) if text
    ]
    assert statements
    first = responder.loglikelihood(statements)
    assert [score.best[0] for score in first] == [score.tokens[0] for score in first]
    if mixing == "hard":
        other = ModelResponder(editor.other, tokenizer)
        base = ModelResponder(model, tokenizer)
        for question, text in zip(QUESTIONS, texts, strict=True):
            choice = choices[question.prompt]
            told = question._replace(prompt=choice.edit.context + question.prompt)
            asked, by = (told, other) if choice.inside else (question, base)
            assert text == by.generate_until([asked], ())[0]
    handle.undo()
    assert weights_hash(model) == before


def test_neighbours_are_found_by_the_encoders_states() -> None:
    model, tokenizer = two_stacks("t5")
    editor = tuned(model, tokenizer)
    vectors = prompt_vectors(model, editor.prompts, PROMPTS)
    assert vectors.shape == (len(PROMPTS), 32)
    (alone,) = editor.prompts.prompts(PROMPTS[:1])
    with torch.no_grad():
        states = model.get_encoder()(input_ids=torch.tensor([alone])).last_hidden_state
    parts = [
        model.get_encoder()(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0)
        for row in editor.prompts.prompts(PROMPTS)
    ]
    centred = states[0].mean(0) - torch.stack(parts).mean(0)
    torch.testing.assert_close(vectors[0], centred / centred.norm(), rtol=1e-4, atol=1e-5)


def test_a_t5_in_a_folder_answers_for_a_decoder_of_another_vocabulary(tmp_path: Path) -> None:
    t5 = build_tiny("t5", seed=4, vocab_size=320)
    t5.save_pretrained(tmp_path)
    foreign = build_tokenizer(eos=True, vocab_size=320)
    foreign.save_pretrained(tmp_path)
    model, tokenizer = language_model()
    editor = tuned(model, tokenizer, counterfactual=str(tmp_path))
    assert not editor.one_vocabulary
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    choices = editor.memory.choose(PROMPTS)  # type: ignore[union-attr]
    texts = handle.responder().generate_until(QUESTIONS, ())
    other = ModelResponder(t5, foreign)
    asked = 0
    for question, text in zip(QUESTIONS, texts, strict=True):
        choice = choices[question.prompt]
        if choice.inside:
            told = question._replace(prompt=choice.edit.context + question.prompt)
            assert text == other.generate_until([told], ())[0]
            asked += 1
    assert asked
    requests = facts(3)
    batch = ScopeSampler(("rewrite",), 1, 0).sample(requests, Random(0), requests, None)
    editor.terms(batch)["edit_nll"].backward()
    assert all(one.grad is not None for one in editor.other.get_encoder().block[0].parameters())


@pytest.mark.parametrize("kind", ["t5", "t5 gated", "bart"])
def test_a_counterfactual_model_learns_answers_with_the_end_that_generation_stops_at(
    kind: str,
) -> None:
    changes = {"max_position_embeddings": 256} if kind == "bart" else {}
    model, tokenizer = two_stacks(kind, **changes)
    editor = small(own_probes=0, other_facts=1, hard_neg_prob=0.0).bind(model, tokenizer)
    requests = facts(4)
    batch = ScopeSampler(("rewrite",), 0, 1).sample(requests, Random(0), requests, None)
    end = tokenizer.eos_token_id
    assert end in editor.other_prompts.end_tokens(editor.other)
    told = [PromptText(f"{one.prompt} {one.target} {one.prompt}", one.target) for one in requests]
    rows = [(one.prompt, (*one.answer, end)) for one in editor.other_prompts.encode(told)]
    padded = AnswerRows.of(editor.other, rows)
    with torch.no_grad():
        logits = answer_logits(editor.other, padded)
        wanted = torch.nn.functional.cross_entropy(logits, padded.targets)
        found = editor.terms(batch)["edit_nll"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_training_learns_to_answer_from_an_edit_in_other_scripts(kind: str, tmp_path: Path) -> None:
    changes = {"max_position_embeddings": 256} if kind == "bart" else {}
    model, tokenizer = two_stacks(kind, **changes)
    editor = small(
        own_probes=2, other_facts=2, hard_neg_prob=0.0, negatives="batch", counterfactual="scratch",
        counterfactual_hidden=64, counterfactual_lr=6e-3,
    ).bind(model, tokenizer)  # fmt: skip
    before = weights_hash(model)
    trainer(tmp_path, max_epochs=150).fit(editor, datamodule=Facts(batch_size=12))
    new = facts(6)
    handle = editor.edit_model(model, tokenizer, new)
    responder = handle.responder()
    texts = responder.generate_until([Question(one.prompt, 6) for one in new])
    right = [text == one.target for text, one in zip(texts, new, strict=True)]
    assert sum(right) >= 5, texts
    scores = responder.loglikelihood([Statement(one.prompt, one.target) for one in new])
    assert [score.is_greedy for score in scores] == right
    rest = [Question(one.prompt, 4) for one in facts()[6:]]
    base = ModelResponder(model, tokenizer)
    pairs = zip(responder.generate_until(rest), base.generate_until(rest), strict=True)
    assert sum(one == two for one, two in pairs) >= 5
    handle.undo()
    assert weights_hash(model) == before
