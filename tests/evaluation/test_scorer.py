"""Outcomes of probes: right, and the same whatever the batch, the padding side and the mode."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lightning_edit.evaluation.scorer import (
    AnswerScore,
    Baseline,
    ProbeScore,
    Scorer,
    evaluate,
    evaluating,
    probes_of,
)
from lightning_edit.exceptions import DataError
from lightning_edit.models.prompt_encoder import Ids, PromptEncoder
from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer

REQUESTS = [
    EditRequest(
        id="france",
        prompt="The capital of France is",
        subject="France",
        target="Lyon",
        old_target="Paris",
        rephrases=("What is the capital of France?",),
        probes=(
            Probe.of("neighborhood", "The capital of Italy is", ("Rome", "Roma")),
            Probe.of("one_hop", "The river that flows through Lyon is the", "Rhône"),
        ),
    ),
    EditRequest(
        id="tongue",
        prompt="The mother tongue of Danielle Darrieux is",
        subject="Danielle Darrieux",
        target="Italian, of course",
        probes=(
            Probe.of("neighborhood", "The capital of Italy is", ("Rome", "Roma")),
            Probe.of("other_task", "Lyon lies in", "France"),
        ),
    ),
]
FAMILIES = ["gpt2", "llama", "opt", "t5", "bart"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_tiny(request.param)


def encode_pair(tokenizer: Any, prompt: str, answer: str) -> tuple[Ids, Ids]:
    return next(PromptEncoder.of(tokenizer).pairs([(prompt, answer)]))


def score(
    model: nn.Module, batch_size: int = 64, side: str = "right", **kw: object
) -> list[ProbeScore]:
    tokenizer = build_tokenizer(bos=True)
    tokenizer.padding_side = side
    return evaluate(Scorer(model, tokenizer, batch_size=batch_size, **kw), REQUESTS)


def answers_of(score: ProbeScore) -> list[AnswerScore]:
    return [*score.forced, *([] if score.contrast is None else [score.contrast])]


def flat(scores: list[ProbeScore]) -> Iterator[float]:
    for item in scores:
        for answer in answers_of(item):
            yield from answer.nlls


@pytest.mark.slow
def test_outcomes_do_not_depend_on_batch_size_or_padding_side(model: nn.Module) -> None:
    reference = score(model, batch_size=1)
    for batch_size, side in [(1, "left"), (8, "right"), (8, "left"), (64, "left"), (64, "right")]:
        other = score(model, batch_size, side)
        assert [item.generated for item in other] == [item.generated for item in reference]
        for a, b in zip(other, reference, strict=True):
            assert [x.argmax_ids for x in a.forced] == [x.argmax_ids for x in b.forced]
        assert list(flat(other)) == pytest.approx(list(flat(reference)), abs=1e-5)


def test_forced_scores_equal_an_unpadded_forward(model: nn.Module) -> None:
    tokenizer = build_tokenizer(bos=True)
    for item in score(model):
        for answer in item.forced:
            context, target = encode_pair(tokenizer, item.prompt, answer.text)
            if model.config.is_encoder_decoder:
                encoder = torch.tensor([tokenizer(item.prompt)["input_ids"]])
                decoder = torch.tensor([[2, *target[:-1]]])
                logits = model(input_ids=encoder, decoder_input_ids=decoder).logits[0]
            else:
                logits = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
            expected = -logits.log_softmax(-1)[range(len(target)), target]
            assert answer.target_ids == tuple(target)
            assert list(answer.nlls) == pytest.approx(expected.tolist(), abs=1e-5)
            assert answer.argmax_ids == tuple(logits.argmax(-1).tolist())


def test_generation_equals_greedy_decoding_by_hand(model: nn.Module) -> None:
    tokenizer = build_tokenizer(bos=True)
    limit = 8
    for item in score(model, max_new_tokens=limit):
        ids = tokenizer(item.prompt)["input_ids"]
        new: list[int] = []
        while len(new) < limit:
            if model.config.is_encoder_decoder:
                decoder = torch.tensor([[2, *new]])
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits
            else:
                logits = model(torch.tensor([ids + new])).logits
            token = int(logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        text = tokenizer.decode(new, skip_special_tokens=True).strip().split("\n")[0].strip()
        assert item.generated == text


def test_the_answer_that_should_lose_follows_from_the_expectation() -> None:
    contrasts = {(p.edit_id, p.probe.kind): p.contrast for r in REQUESTS for p in probes_of(r)}
    assert contrasts["france", "rewrite"] == contrasts["france", "rephrase"] == "Paris"
    assert contrasts["france", "neighborhood"] == "Lyon"
    assert contrasts["france", "one_hop"] is None
    assert contrasts["tongue", "neighborhood"] is None  # no old target: not a COUNTERFACT request


def test_margin_is_counterfacts() -> None:
    scores = score(build_tiny("gpt2"))
    rewrite, _, neighbor = scores[:3]
    assert rewrite.contrast is not None
    assert neighbor.contrast is not None
    new = math.exp(-sum(rewrite.forced[0].nlls) / len(rewrite.forced[0].nlls))
    old = math.exp(-sum(rewrite.contrast.nlls) / len(rewrite.contrast.nlls))
    assert rewrite.contrast.text == "Paris"
    assert neighbor.contrast.text == "Lyon"
    assert rewrite.margin == pytest.approx(new - old)
    assert rewrite.margin_sign == float(new > old)


def test_rows_that_repeat_are_computed_once() -> None:
    model = build_tiny("gpt2")
    rows = 0

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal rows
        rows += kwargs["input_ids"].shape[0]

    with_hook = model.register_forward_pre_hook(count, with_kwargs=True)
    scorer = Scorer(model, build_tokenizer(), modes=("tf",))
    scores = evaluate(scorer, [*REQUESTS, *REQUESTS])
    with_hook.remove()
    texts = {
        (s.prompt, a.text)
        for s in scores
        for a in (*s.forced, *([s.contrast] if s.contrast else []))
    }
    pairs = [encode_pair(build_tokenizer(), prompt, text) for prompt, text in texts]
    inputs = {prompt + answer[:-1] for prompt, answer in pairs}
    # A row that another one begins with is read in that one.
    longest = [a for a in inputs if not any(b != a and b[: len(a)] == a for b in inputs)]
    assert rows == len(longest) < len(texts)
    assert scores[: len(scores) // 2] == scores[len(scores) // 2 :]


def test_training_state_and_randomness_are_left_alone() -> None:
    model = build_tiny("gpt2", resid_pdrop=0.5)
    quiet = score(model)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    noisy = score(model)
    assert noisy == quiet
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_an_error() -> None:
    model = build_tiny("gpt2").train()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_scored_in_float32(dtype: torch.dtype) -> None:
    exact = list(flat(score(build_tiny("llama"), modes=("tf",))))
    half = list(flat(score(build_tiny("llama").to(dtype), modes=("tf",))))
    assert half == pytest.approx(exact, rel=0.1, abs=0.15)
    # More digits than the dtype has: the log-softmax was not rounded to it.
    assert any(value != float(torch.tensor(value).to(dtype)) for value in half)


def test_a_broken_model_gets_the_worst_score_and_still_ends() -> None:
    model = build_tiny("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    scores = score(model)
    assert all(item.nll == 1000 and item.em == 0 for item in scores)


def test_a_model_trained_on_a_fact_answers_it_in_both_modes() -> None:
    tokenizer = build_tokenizer(bos=True)
    model = build_tiny("llama")
    context, target = encode_pair(tokenizer, "The capital of France is", "Lyon")
    ids = torch.tensor([[*context, *target, tokenizer.eos_token_id]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    baseline = Baseline(evaluate(Scorer(model, tokenizer), REQUESTS))
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    rewrite, _, neighbor, _ = evaluate(Scorer(model, tokenizer), REQUESTS[:1], baseline)
    assert (rewrite.em, rewrite.token_acc, rewrite.em_gen) == (1.0, 1.0, 1.0)
    assert rewrite.margin_sign == 1.0
    assert rewrite.pristine is not None
    assert rewrite.pristine.em == 0.0
    assert neighbor.kept_gen == 0.0  # trained on nothing else, it says Lyon everywhere


def test_a_tokenizer_that_closes_texts_does_not_end_the_prompt() -> None:
    model = build_tiny("gpt2")
    open_ended = evaluate(Scorer(model, build_tokenizer(bos=True)), REQUESTS)
    closed = evaluate(Scorer(model, build_tokenizer(bos=True, eos=True)), REQUESTS)
    assert closed == open_ended


def test_without_padding_token_and_with_one_mode() -> None:
    model = build_tiny("gpt2")
    generated = evaluate(Scorer(model, build_tokenizer(pad=False), modes=("gen",)), REQUESTS)
    assert all(item.generated is not None and item.em is None for item in generated)
    forced = evaluate(Scorer(model, build_tokenizer(pad=False), modes=("tf",)), REQUESTS)
    assert all(item.em is not None and item.em_gen is None for item in forced)


def test_no_probes_no_outcomes() -> None:
    assert Scorer(build_tiny("gpt2"), build_tokenizer()).score([]) == []


def test_a_prompt_too_long_for_the_model_is_named() -> None:
    request = EditRequest(id="long", prompt="France " * 140, target="Lyon")
    with pytest.raises(DataError, match=r"request long.* tokens but the model takes 128"):
        evaluate(Scorer(build_tiny("gpt2"), build_tokenizer()), [request])


def test_a_prompt_that_nearly_fills_the_model_generates_what_fits() -> None:
    tokenizer = build_tokenizer()
    prompt = "France"
    while len(tokenizer(prompt + " France")["input_ids"]) < 60:
        prompt += " France"
    request = EditRequest(id="full", prompt=prompt, target="Lyon")
    short = EditRequest(id="short", prompt="France", target="Lyon")
    scores = evaluate(Scorer(build_tiny("gpt2"), tokenizer), [request, short])
    assert len(scores) == 2


@pytest.mark.parametrize("wrong", [{"modes": ("tf", "x")}, {"modes": ()}, {"batch_size": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Exception, match=r"modes|batch_size|beartype|hint"):
        Scorer(build_tiny("gpt2"), build_tokenizer(), **wrong)
