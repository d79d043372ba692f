"""Calls of models of two stacks, seen from a module inside: one decision a prompt."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.functional.padding import pad
from lightning_edit.inference.answer_rows import AnswerRows, start_tokens
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.model_call import ModelCall, calls_of
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.module_adapter import ModuleAdapter, attach, attached
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import Stack, resolve
from tests.models.tiny import build_tiny, build_tokenizer

PROMPTS = ["The capital of France is", "Marseille lies in", "What is the capital of Italy? Rome"]
OTHER_SITES = (("t5", "decoder"), ("bart", "encoder"))
sites = pytest.mark.parametrize(
    ("kind", "stack"),
    [
        ("t5", "encoder"),
        ("bart", "decoder"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHER_SITES),
    ],
)


class Shift(ModuleAdapter):
    """Adds a vector to all tokens of a row whose prompt's state has a large entry."""

    by_prompt = True

    def __init__(self, entry: int = 0, least: float = 0.0) -> None:
        self.entry = entry
        self.least = least
        self.vector = torch.linspace(-40.0, 40.0, 32)
        self.decided: list[Tensor] = []
        self.seen: list[tuple[bool, list[int], int]] = []

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        assert call is not None
        self.seen.append((call.begins, call.ends.tolist(), int(call.prompt.sum())))

        def decide() -> Tensor:
            self.decided.append(call.at_ends(hidden)[:, self.entry] > self.least)
            return self.decided[-1]

        return output + self.vector * call.decide("shift", decide)[:, None, None]


def site(model: Any, stack: Stack) -> str:
    return resolve(model).block(0, stack).mlp_down


def ids_of(tokenizer: Any) -> list[tuple[int, ...]]:
    return [tuple(tokenizer(prompt).input_ids) for prompt in PROMPTS]


def shifted(kind: str, stack: Stack) -> tuple[Any, Any, Shift, list[bool]]:
    """Return a model with an adapter that acts on one or two of the prompts, and on which."""
    model, tokenizer = build_tiny(kind), build_tokenizer(eos=True)
    states: list[Tensor] = []

    class Read(Shift):
        def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
            # In the encoder the last token is EOS, in the decoder the first one is the start.
            states.append(hidden[0, -1 if stack == "encoder" else 0])
            return output

    with attached(model, {site(model, stack): Read()}):
        for row in ids_of(tokenizer):
            model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[2, 9]]))
    table = torch.stack(states)
    spread = table.sort(0).values.diff(dim=0)
    entry = int(spread.amax(0).argmax())
    low, high = table[:, entry].sort().values.tolist(), int(spread[:, entry].argmax())
    adapter = Shift(entry, (low[high] + low[high + 1]) / 2)
    attach(model, {site(model, stack): adapter})
    return model, tokenizer, adapter, (table[:, entry] > adapter.least).tolist()


@sites
def test_a_prompt_is_decided_once_however_it_is_asked(kind: str, stack: Stack) -> None:
    model, tokenizer, adapter, hit = shifted(kind, stack)
    assert sorted(set(hit)) == [False, True]
    responder = ModelResponder(model, tokenizer)
    questions = [Question(prompt, 6) for prompt in PROMPTS]
    together = responder.generate_until(questions, ())
    # Shorter prompts stand first in the batch; one decision each, at the first call.
    assert [sorted(one.tolist()) for one in adapter.decided] == [sorted(hit)]
    assert together == [responder.generate_until([one], ())[0] for one in questions]
    bare = ModelResponder(build_tiny(kind), tokenizer).generate_until(questions, ())
    for mine, theirs, acts in zip(together, bare, hit, strict=True):
        assert acts or mine == theirs
    for prompt, text, acts in zip(PROMPTS, together, hit, strict=True):
        adapter.decided.clear()
        (forced,) = responder.loglikelihood([Statement(prompt, "Lyon", "")])
        assert adapter.decided[-1].tolist() == [acts]
        assert text.startswith(tokenizer.decode(forced.best[:1], skip_special_tokens=True).strip())


@sites
@torch.no_grad()
def test_somebody_elses_calls(kind: str, stack: Stack) -> None:
    model, tokenizer, adapter, hit = shifted(kind, stack)
    plain, rows = build_tiny(kind), ids_of(tokenizer)
    labels = torch.tensor([[5, 6, 7]] * len(rows))
    ids, mask = pad(rows)
    together = model(input_ids=ids, attention_mask=mask, labels=labels)
    own = plain(input_ids=ids, attention_mask=mask, labels=labels)
    assert adapter.decided[-1].tolist() == hit
    for row, acts in enumerate(hit):
        assert torch.equal(together.logits[row], own.logits[row]) != acts
    if kind == "t5":  # no absolute positions: padding on the left is read alike
        left, real = pad(rows, left=True)
        theirs = model(input_ids=left, attention_mask=real, labels=labels)
        torch.testing.assert_close(theirs.logits, together.logits, rtol=1e-4, atol=1e-4)
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 5,
        "forced_eos_token_id": None,
    }
    adapter.decided.clear()
    cached = model.generate(input_ids=ids, attention_mask=mask, **settings)
    assert [one.tolist() for one in adapter.decided] == [hit]
    without = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(cached, without)
    adapter.decided.clear()
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, **settings)
    assert len(beams) == len(rows)
    wide = hit if stack == "encoder" else [one for one in hit for _ in range(3)]
    assert adapter.decided[0].tolist() == wide
    assert len(adapter.decided) == 1


@torch.no_grad()
def test_what_a_module_is_told_of_either_stack() -> None:
    tokenizer = build_tokenizer(eos=True)
    ids, mask = pad(ids_of(tokenizer))
    ends = (mask.sum(1) - 1).tolist()
    for stack in ("encoder", "decoder"):
        model = build_tiny("t5")
        attach(model, {site(model, stack): (adapter := Shift())})
        options = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None}
        model.generate(input_ids=ids, attention_mask=mask, **options)
        if stack == "encoder":  # called once
            assert adapter.seen == [(True, ends, int(mask.sum()))]
        else:  # the start token stands for the prompt, and steps have none
            assert adapter.seen[0] == (True, [0, 0, 0], 3)
            assert adapter.seen[1:] == [(False, [0, 0, 0], 0)] * 2


@torch.no_grad()
def test_decisions_of_a_decoder_live_in_its_cache() -> None:
    model, tokenizer, adapter, hit = shifted("t5", "decoder")
    begin, step = torch.tensor([[2]]), torch.tensor([[9]])
    states = [model.get_encoder()(input_ids=torch.tensor([row])) for row in ids_of(tokenizer)]
    first = [model(encoder_outputs=one, decoder_input_ids=begin, use_cache=True) for one in states]
    assert [one.item() for one in adapter.decided] == hit  # interleaved: three prompts
    for one, encoded in zip(first, states, strict=True):
        twin = copy.deepcopy(one.past_key_values)
        found = model(
            encoder_outputs=encoded, decoder_input_ids=step, past_key_values=one.past_key_values
        )
        again = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=twin)
        assert torch.equal(found.logits, again.logits)
        whole = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[2, 9]]))
        torch.testing.assert_close(found.logits[:, 0], whole.logits[:, 1], rtol=1e-4, atol=1e-4)
    assert len(adapter.decided) == 6
    with pytest.raises(ArchitectureError, match="KV cache of 1 prompts is continued with 2 rows"):
        model(
            encoder_outputs=(states[0][0].expand(2, -1, -1),),
            decoder_input_ids=torch.tensor([[9], [9]]),
            past_key_values=first[0].past_key_values,
        )


@torch.no_grad()
def test_a_cache_filled_before_the_edits_is_refused_in_the_decoder() -> None:
    model, tokenizer = build_tiny("bart"), build_tokenizer(eos=True)
    ids = torch.tensor([ids_of(tokenizer)[0]])
    before = model(input_ids=ids, decoder_input_ids=torch.tensor([[2]]), use_cache=True)
    step = {"encoder_outputs": (before.encoder_last_hidden_state,)}
    step |= {"decoder_input_ids": torch.tensor([[9]]), "past_key_values": before.past_key_values}
    refused = pytest.raises(ArchitectureError, match="filled before the present edits")
    with attached(model, {site(model, "decoder"): Shift()}), refused:
        model(**step)
    assert calls_of(model) is None
    model(**step)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_prompts_that_are_encoded_once_give_the_same_logits(kind: str) -> None:
    model, tokenizer, adapter, hit = shifted(kind, "encoder")
    rows = AnswerRows.of(model, [(row, (5, 6, 7)) for row in ids_of(tokenizer)])
    plain = answer_logits(model, rows)
    with torch.no_grad():
        once = rows.encode_prompts(model)
    assert once.encoded is not None
    calls = len(adapter.seen)
    torch.testing.assert_close(answer_logits(model, once), plain)
    assert len(adapter.seen) == calls  # the encoder did not run
    assert adapter.decided[-1].tolist() == hit
    llama = build_tiny("llama")
    one_stack = AnswerRows.of(llama, [((5, 6), (7,))])
    assert one_stack.encode_prompts(llama) is one_stack


def test_a_bos_that_settings_force_is_no_token_of_the_answer() -> None:
    model, tokenizer = build_tiny("bart"), build_tokenizer(eos=True)
    model.generation_config.forced_bos_token_id = 1
    responder = ModelResponder(model, tokenizer)
    (text,) = responder.generate_until([Question(PROMPTS[0], 4)], ())
    (forced,) = responder.loglikelihood([Statement(PROMPTS[0], text, "")])
    assert forced.is_greedy
    assert len(forced.tokens) == 4


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_start_token_is_that_of_the_generation_settings(kind: str) -> None:
    """A model may name it in its generation settings alone, or otherwise than in its config."""
    model, tokenizer = build_tiny(kind), build_tokenizer(eos=True)
    for in_config in (None, 2):
        model.config.decoder_start_token_id = in_config
        model.generation_config.decoder_start_token_id = 5
        assert start_tokens(model) == [5]
        responder = ModelResponder(model, tokenizer)
        (text,) = responder.generate_until([Question(PROMPTS[0], 4)], ())
        ids = torch.tensor([PromptEncoder.for_model(model, tokenizer).prompts(PROMPTS[:1])[0]])
        logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[5]])).logits
        first = tokenizer.decode(logits[0, -1].argmax(-1, keepdim=True)).strip()
        assert text.startswith(first)
    model.generation_config.decoder_start_token_id = None
    assert start_tokens(model) == [2]
    model.config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(ArchitectureError, match=r"set model\.generation_config\.decoder_start"):
        start_tokens(model)


def test_settings_of_summaries_neither_hold_back_an_end_nor_search_beams() -> None:
    """Those of BART's large CNN model ask for 56 tokens at least; its config is not changed."""
    summaries = {
        "min_length": 56,
        "max_length": 142,
        "num_beams": 4,
        "early_stopping": True,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": 1,
        "forced_eos_token_id": 2,
    }
    for settings in ({}, summaries, {**summaries, "min_new_tokens": 20}):
        model = build_tiny("bart")
        model.final_logits_bias[0, 2] = 1000.0  # the model ends every answer at once
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        responder = ModelResponder(model, build_tokenizer(eos=True))
        assert responder.generate_until([Question(p, 16) for p in PROMPTS], ()) == [""] * 3
        model.final_logits_bias[0, 2] = -1000.0
        texts = responder.generate_until([Question(p, 16) for p in PROMPTS], ())
        assert all(texts)
        assert model.generation_config.min_length == settings.get("min_length")


def test_a_prompt_longer_than_barts_positions_is_named() -> None:
    model, tokenizer = build_tiny("bart"), build_tokenizer(eos=True)
    responder = ModelResponder(model, tokenizer)
    with pytest.raises(ValueError, match="but the encoder takes 64; shorten the prompt"):
        responder.generate_until([Question("Lyon lies in France " * 20, 2)], ())
    with pytest.raises(ValueError, match="but the encoder takes 64"):
        responder.loglikelihood([Statement("Lyon lies in France " * 20, "Lyon")])
    free = PromptEncoder.for_model(build_tiny("t5"), tokenizer)
    assert free.limits.encoder is None
    assert len(free.prompts(["Lyon lies in France " * 20])[0]) > 64
