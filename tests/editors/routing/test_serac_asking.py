"""SERAC is asked: routing once a prompt, equal answers alone, in a batch, forced, generated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightning_edit.editors.routing.memory import stored_delta, stored_edits
from lightning_edit.editors.routing.networks import first_blocks
from lightning_edit.editors.routing.routed_responder import in_tokens_of
from lightning_edit.editors.routing.serac import SERAC
from lightning_edit.edits.delta import Delta
from lightning_edit.evaluation.scorer import Scorer, evaluate
from lightning_edit.exceptions import ArchitectureError, ConfigError, DataError, ModelLoadError
from lightning_edit.functional.scope import mixed_log_probabilities
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Question, Responder, Statement, TokenScores
from lightning_edit.models.prompt_encoder import PromptEncoder, PromptText
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.editors.routing.routing import PROMPTS, REQUESTS, language_model, tuned, untuned
from tests.models.tiny import TINY, build_tiny, build_tokenizer

QUESTIONS = [Question(prompt, 6) for prompt in PROMPTS]
SHORT = [Question(prompt, 1) for prompt in PROMPTS]
KINDS = ["embedding", "cross-attention"]


def edited(**options: Any) -> tuple[Any, Any, SERAC, Responder]:
    model, tokenizer = language_model()
    editor = tuned(model, tokenizer, **options)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    return model, tokenizer, editor, editor.responder(handle.ledger.in_force)


def inside(editor: SERAC) -> list[bool]:
    assert editor.memory is not None
    return [choice.inside for choice in editor.memory.choose(PROMPTS).values()]


def first_choices(tokenizer: Any, responder: Responder) -> list[str]:
    """The token that a forced pass has as its first choice behind each prompt."""
    scores = responder.loglikelihood([Statement(prompt, "Paris") for prompt in PROMPTS])
    return [tokenizer.decode(score.best[:1], skip_special_tokens=True).strip() for score in scores]


def same(one: TokenScores, two: TokenScores) -> bool:
    return (one.tokens, one.best) == (two.tokens, two.best) and torch.allclose(
        torch.tensor(one.nlls), torch.tensor(two.nlls), atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_equals_one_by_one_and_forced_equals_generated(kind: str) -> None:
    _, tokenizer, editor, responder = edited(classifier_kind=kind)
    assert set(inside(editor)) == {True, False}
    texts = responder.generate_until(QUESTIONS, ())
    assert texts == [responder.generate_until([one], ())[0] for one in QUESTIONS]
    statements = [Statement(p, t) for p, t in zip(PROMPTS, texts, strict=True) if t]
    assert len(statements) >= 4
    together = responder.loglikelihood(statements)
    for one, score in zip(statements, together, strict=True):
        assert same(score, responder.loglikelihood([one])[0])
    assert first_choices(tokenizer, responder) == responder.generate_until(SHORT, ())
    asked = responder.ask(statements, QUESTIONS, statements)
    assert [score.best for score in asked[0]] == [score.best for score in together]
    assert asked[1] == responder.generate_until(QUESTIONS)
    # The order of questions says nothing.
    assert responder.generate_until(QUESTIONS[::-1], ()) == texts[::-1]
    tokenizer.padding_side = "left"
    assert responder.generate_until(QUESTIONS, ()) == texts


@pytest.mark.parametrize(
    "kind", ["embedding", pytest.param("cross-attention", marks=pytest.mark.slow)]
)
def test_out_of_scope_is_exactly_the_base_model_and_in_scope_the_other(kind: str) -> None:
    model, tokenizer, editor, responder = edited(classifier_kind=kind)
    before = weights_hash(model)
    statements = [Statement(prompt, "Paris") for prompt in PROMPTS]
    chosen = inside(editor)
    found = responder.loglikelihood(statements)
    base = ModelResponder(model, tokenizer)
    far = [one for one, near in zip(statements, chosen, strict=True) if not near]
    assert [s for s, near in zip(found, chosen, strict=True) if not near] == base.loglikelihood(far)
    other = ModelResponder(editor.other, tokenizer)
    assert editor.memory is not None
    for one, score, near in zip(statements, found, chosen, strict=True):
        if near:
            edit = editor.memory.choose([one.prompt])[one.prompt].edit
            told = one._replace(prompt=f"{edit.prompt} {edit.target} {one.prompt}")
            assert same(score, other.loglikelihood([told])[0])
    texts = [REQUESTS[0].prompt, "Marseille lies in France"]
    assert responder.loglikelihood_rolling(texts) == base.loglikelihood_rolling(texts)
    assert weights_hash(model) == before


def test_a_prompt_is_routed_once_and_encoded_once() -> None:
    _, _, editor, responder = edited()
    assert editor.scope is not None
    assert editor.memory is not None
    seen: list[tuple[int, ...]] = []
    network, real = editor.scope, editor.scope.vectors

    def counted(rows: Any) -> Any:
        seen.extend(rows)
        return real(rows)

    network.vectors = counted  # type: ignore[method-assign]
    editor.forget_vectors()
    responder.ask([Statement(prompt, "Paris") for prompt in PROMPTS], QUESTIONS)
    responder.generate_until(QUESTIONS, ())
    assert len(seen) == len(set(seen)) == len(PROMPTS) + len(REQUESTS)
    editor.memory.install([stored_delta(REQUESTS), stored_delta([_more()])])
    responder.generate_until(QUESTIONS, ())
    assert len(seen) == len(PROMPTS) + len(REQUESTS) + 1  # only the new edit


def _more() -> EditRequest:
    return EditRequest("z", "Lyon lies in", "Italy")


def test_an_undo_in_the_middle_equals_never_having_edited() -> None:
    model, tokenizer = language_model()
    editor = tuned(model, tokenizer)
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    handle.undo("b")
    requests = [*REQUESTS, _more()]
    scorer = Scorer(model, tokenizer, responder=editor.responder(handle.ledger.in_force))
    scores = evaluate(scorer, requests)
    twin_model, twin_tokenizer = language_model()
    twin = tuned(twin_model, twin_tokenizer)
    ledger = twin.edit_model(twin_model, twin_tokenizer, [REQUESTS[0], REQUESTS[2]]).ledger
    responder = twin.responder(ledger.in_force)
    assert scores == evaluate(Scorer(twin_model, twin_tokenizer, responder=responder), requests)
    handle.undo()
    base = Scorer(model, tokenizer)
    assert evaluate(scorer, requests) == evaluate(base, requests)
    handle.redo()
    assert editor.memory is not None
    assert [edit.target for edit in editor.memory.edits] == ["Lyon", "Арль", "里昂"]


def test_an_edit_is_text_that_survives_its_file(tmp_path: Path) -> None:
    odd = EditRequest("d", "  A prompt with 'Lyon'\nand a line break", " Lyon ")
    delta = stored_delta([*REQUESTS, odd])
    delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    wanted = [(request.prompt, request.target) for request in (*REQUESTS, odd)]
    assert stored_edits(loaded) == stored_edits(delta) == wanted
    assert loaded.prompts["a"] == "The capital of France is Lyon"


@pytest.mark.parametrize(
    "kind", ["embedding", pytest.param("cross-attention", marks=pytest.mark.slow)]
)
def test_saved_loaded_and_asked_is_equal(kind: str, tmp_path: Path) -> None:
    model, tokenizer, editor, responder = edited(classifier_kind=kind)
    wanted = responder.generate_until(QUESTIONS, ())
    scores = responder.loglikelihood([Statement(prompt, "Paris") for prompt in PROMPTS])
    editor.save_parts(tmp_path)
    editor.save_weights(tmp_path / "serac.safetensors")
    early, late = untuned(counterfactual="scratch"), untuned(classifier="scratch")
    early.load_parts(tmp_path)
    early.bind(model, tokenizer)
    late.bind(model, tokenizer)
    late.load_parts(tmp_path)
    from_file = SERAC(checkpoint=str(tmp_path / "serac.safetensors"))
    for loaded in (early, late, from_file.bind(model, tokenizer)):
        assert isinstance(loaded, SERAC)
        assert loaded.is_trained
        handle = loaded.edit_model(model, tokenizer, REQUESTS)
        again = loaded.responder(handle.ledger.in_force)
        assert again.generate_until(QUESTIONS, ()) == wanted
        assert again.loglikelihood([Statement(p, "Paris") for p in PROMPTS]) == scores


def foreign_folder(folder: Path) -> Path:
    """A smaller model with another vocabulary."""
    other = build_tiny("gpt2", seed=3, n_layer=1, vocab_size=280)
    other.save_pretrained(folder)
    build_tokenizer(vocab_size=280).save_pretrained(folder)
    return folder


def test_another_vocabulary_is_compared_as_text_and_never_mixed(tmp_path: Path) -> None:
    folder = str(foreign_folder(tmp_path / "small"))
    model, tokenizer, editor, responder = edited(counterfactual=folder)
    texts = responder.generate_until(QUESTIONS, ())
    own = PromptEncoder.for_model(model, tokenizer)
    compared = 0
    for question, text, near in zip(QUESTIONS, texts, inside(editor), strict=True):
        if not near or not text:
            continue
        statement = Statement(question.prompt, text)
        (score,) = responder.loglikelihood([statement])
        (encoded,) = own.encode([PromptText(statement.prompt, text)])
        assert score.tokens == encoded.answer
        (wrong,) = responder.loglikelihood([statement._replace(answer="Avignon")])
        assert len(wrong.best) == len(wrong.tokens)
        assert not wrong.is_greedy
        compared += 1
    assert compared
    for options in ({"mixing": "soft"}, {"objective": "unsupervised"}):
        with pytest.raises(ConfigError, match="expects one vocabulary"):
            untuned(counterfactual=folder, **options).bind(model, tokenizer)
    editor.save_parts(tmp_path)
    loaded = untuned()
    loaded.load_parts(tmp_path)  # with the tokenizer of the counterfactual model
    handle = loaded.edit_model(model, tokenizer, REQUESTS)
    again = loaded.responder(handle.ledger.in_force)
    assert again.generate_until(QUESTIONS, ()) == texts


def chat_encoder(tokenizer: Any) -> PromptEncoder:
    """The answer begins right behind this template, without the blank of plain text."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return PromptEncoder(tokenizer, PromptFormat(True))


def test_behind_a_chat_template_answers_are_given_in_the_base_models_tokens() -> None:
    model, tokenizer = language_model()
    encoder = PromptEncoder.for_model(model, chat_encoder(tokenizer))
    editor = tuned(model, encoder)
    handle = editor.edit_model(model, encoder, REQUESTS)
    assert set(inside(editor)) == {True, False}
    responder = editor.responder(handle.ledger.in_force)
    statements = [Statement(prompt, "Paris") for prompt in PROMPTS]
    base = ModelResponder(model, encoder).loglikelihood(statements)
    for asked, before in zip(responder.loglikelihood(statements), base, strict=True):
        assert asked.tokens == before.tokens
        assert len(asked.best) == len(before.best)
    texts = responder.generate_until(QUESTIONS, ())
    compared = 0
    for question, text, near in zip(QUESTIONS, texts, inside(editor), strict=True):
        if near and text.strip():
            (score,) = responder.loglikelihood([Statement(question.prompt, text)])
            (encoded,) = encoder.encode([PromptText(question.prompt, text)])
            assert score.tokens == encoded.answer
            compared += 1
    assert compared


@pytest.mark.parametrize("options", [{"mixing": "soft"}, {"objective": "unsupervised"}])
def test_predictions_are_not_mixed_across_a_chat_template(options: dict[str, Any]) -> None:
    model, tokenizer = language_model()
    with pytest.raises(ConfigError, match="behind its chat template"):
        untuned(**options).bind(model, chat_encoder(tokenizer))


def test_a_second_edit_of_a_prompt_stands_for_the_first_until_it_is_undone() -> None:
    model, tokenizer = language_model()
    editor = tuned(model, tokenizer)
    again = EditRequest("a2", REQUESTS[0].prompt, "Nice", "France")
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    handle.edit(again)
    assert editor.memory is not None
    assert sorted(edit.target for edit in editor.memory.edits) == sorted(["Nice", "Арль", "里昂"])
    handle.undo("a2")
    assert editor.memory.edits[0].target == "Lyon"


def test_first_choices_are_given_in_ones_own_tokens_by_their_text() -> None:
    own = PromptEncoder(build_tokenizer())
    asked = Statement("The capital of France is", "Paris")
    (tokens,) = (one.answer for one in own.encode([PromptText(asked.prompt, asked.answer)]))
    scores = TokenScores((1, 2, 3), (1, 2, 4), (0.1, 0.2, 0.3))
    right = in_tokens_of(own, asked, scores, " Paris")
    assert (right.best, right.is_greedy, right.nlls) == (tokens, True, scores.nlls)
    for said in (" Lyon", "", "Paris and more"):
        found = in_tokens_of(own, asked, scores, said)
        assert found.tokens == tokens
        assert len(found.best) == len(tokens)
        assert not found.is_greedy, said


def test_a_trained_editor_refuses_another_vocabulary() -> None:
    model, tokenizer, editor, _ = edited()
    assert editor.last_ledger is not None
    editor.last_ledger.undo(editor.last_ledger.request_ids)
    other = build_tiny("gpt2"), build_tokenizer()
    with pytest.raises(ArchitectureError, match="trained with another vocabulary"):
        editor.bind(*other)
    fresh = SERAC(classifier_layers=1, counterfactual_layers=1).bind(model, tokenizer)
    fresh.bind(*other)  # not trained: built anew for the other model
    assert fresh.other.config.vocab_size == other[0].config.vocab_size


def test_soft_mixing_is_the_weighted_sum_of_both_models() -> None:
    model, tokenizer, editor, responder = edited(mixing="soft")
    assert editor.memory is not None
    statements = [Statement(prompt, "Paris") for prompt in PROMPTS[:4]]
    plain = ModelResponder(model, tokenizer)
    own, other = editor.prompts, editor.other_prompts
    for one, score in zip(statements, responder.loglikelihood(statements), strict=True):
        choice = editor.memory.choose([one.prompt])[one.prompt]
        told = one.prompt, choice.edit.context + one.prompt
        sides = []
        for encoder, lm, prompt in zip((own, other), (model, editor.other), told, strict=True):
            (encoded,) = encoder.encode([PromptText(prompt, one.answer)])
            ids = torch.tensor([[*encoded.prompt, *encoded.answer]])
            with torch.no_grad():
                sides.append(lm(ids).logits[0, -1 - len(encoded.answer) : -1])
        mixed = mixed_log_probabilities(*sides, torch.full((len(score.tokens),), choice.score))
        wanted = -mixed.gather(1, torch.tensor(score.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(score.nlls), wanted, rtol=1e-4, atol=1e-4)
    assert first_choices(tokenizer, responder) == responder.generate_until(SHORT, ())
    rolling = ["Marseille lies in France"]
    assert responder.loglikelihood_rolling(rolling) == plain.loglikelihood_rolling(rolling)
    editor.memory.install([])
    assert responder.loglikelihood(statements) == plain.loglikelihood(statements)


@pytest.mark.parametrize("family", [f for f in TINY if f not in ("t5", "bart")])
def test_the_first_blocks_of_any_decoder_make_a_smaller_model(family: str) -> None:
    model = TINY[family]()
    ids = torch.tensor([[5, 7, 9, 11]])
    whole = first_blocks(model, 99)
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, model(ids).logits)
        small: PreTrainedModel = first_blocks(model, 1)
        assert small(ids).logits.shape == (1, 4, model.config.vocab_size)
    assert small.config.num_hidden_layers == 1
    assert all(one.requires_grad for one in small.parameters())
    assert small.get_input_embeddings().weight.data_ptr() != (
        model.get_input_embeddings().weight.data_ptr()
    )


def test_an_encoder_from_a_folder_reads_with_its_own_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = language_model()
    made = untuned(classifier="scratch").bind(model, tokenizer)
    made.scope.network.save_pretrained(tmp_path)
    build_tokenizer(vocab_size=280).save_pretrained(tmp_path)
    editor = tuned(model, tokenizer, classifier=str(tmp_path))
    assert editor.scope is not None
    assert len(editor.scope.text.tokenizer) == 280
    handle = editor.edit_model(model, tokenizer, REQUESTS)
    assert editor.responder(handle.ledger.in_force).generate_until(QUESTIONS, ())
    with pytest.raises(ModelLoadError, match="there is no folder"):
        untuned(classifier=str(tmp_path / "absent")).bind(model, tokenizer)
    with pytest.raises(ModelLoadError, match="there is no folder"):
        untuned(counterfactual="distilbert/distilgpt2").bind(model, tokenizer)


def test_arguments_that_do_not_fit_are_refused() -> None:
    model, tokenizer = language_model()
    for options, message in (
        ({"classifier_heads": 5}, "classifier_heads that divide the width 32, got 5"),
        ({"counterfactual": "scratch", "counterfactual_heads": 3}, "counterfactual_heads"),
        ({"views": ["rewrite", "paraphrase"]}, "kinds of probes as views, got 'paraphrase'"),
    ):
        with pytest.raises(ConfigError, match=message):
            untuned(**options).bind(model, tokenizer)
    editor = tuned(model, tokenizer)
    long = EditRequest("long", "Marseille " * 15, "Lyon")
    handle = editor.edit_model(model, tokenizer, [long])
    responder = editor.responder(handle.ledger.in_force)
    editor.scope.scale = 0.0  # everything is in scope
    editor.forget_vectors()
    with pytest.raises(DataError, match="cannot read a prompt behind its edit"):
        responder.generate_until([Question("Marseille " * 15, 3)])
