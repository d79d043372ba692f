"""The encoder of two stacks reads a prompt once, for all its answers and its continuation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from lightning_edit.distributed.one_process import OneProcess
from lightning_edit.exceptions import PassLayoutError
from lightning_edit.inference import model_responder
from lightning_edit.inference.encoded_prompts import EncodedPrompts, parts_of
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question, Statement
from tests.models.tiny import build_tiny, build_tokenizer

ANSWERS = {
    "The capital of France is": ["Paris", "Lyon and Arles", "Nice"],
    "What is the capital of Italy?": ["Rome", "Milan or Turin"],
    "法国的首都是": ["巴黎"],
}
STATEMENTS = [Statement(prompt, answer) for prompt, some in ANSWERS.items() for answer in some]
QUESTIONS = [Question(prompt, 6) for prompt in [*ANSWERS, "Marseille lies in"]]
#: Sizes of the tiny T5 with experts, whose encoder's outputs are of a class of their own.
EXPERTS = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "num_experts": 2, "vocab_size": 97, "decoder_start_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
families = pytest.mark.parametrize("family", ["t5", "t5_gated", "bart", "switch_transformers"])


@contextmanager
def read_batches(model: Any) -> Iterator[list[list[list[int]]]]:
    """Collect the token ids of each call of the encoder, without a hook of torch's."""
    encoder: nn.Module = model.get_encoder()
    batches: list[list[list[int]]] = []
    own = encoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        batches.append(kwargs["input_ids"].tolist())
        return own(*args, **kwargs)

    encoder.forward = forward  # type: ignore[method-assign]
    yield batches
    del encoder.forward


def encoded_rows(batches: list[list[list[int]]]) -> int:
    """Return the number of prompts in all calls of the encoder."""
    return sum(map(len, batches))


def build(family: str) -> tuple[Any, Any]:
    if family == "switch_transformers":
        config = AutoConfig.for_model(family, **EXPERTS)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = AutoModelForSeq2SeqLM.from_config(config).eval()
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model, build_tokenizer(eos=True)
    changes = {"feed_forward_proj": "gated-gelu"} if family == "t5_gated" else {}
    return build_tiny(family.removesuffix("_gated"), **changes), build_tokenizer(eos=True)


@families
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_answers_and_texts_are_those_of_prompts_read_alone(family: str, batch_size: int) -> None:
    model, tokenizer = build(family)
    scores, texts = ModelResponder(model, tokenizer, batch_size).ask(STATEMENTS, QUESTIONS)
    alone = ModelResponder(model, tokenizer, 1, PassLayout("plain"))
    for statement, score in zip(STATEMENTS, scores, strict=True):
        (expected,) = alone.loglikelihood([statement])
        assert score.nlls == pytest.approx(expected.nlls, abs=1e-5)
        assert score.best == expected.best
    assert texts == [alone.generate_until([one])[0] for one in QUESTIONS]


@families
def test_the_encoder_reads_each_prompt_once(family: str) -> None:
    model, tokenizer = build(family)
    with read_batches(model) as rows:
        ModelResponder(model, tokenizer).ask(STATEMENTS, QUESTIONS)
    assert encoded_rows(rows) == len(QUESTIONS)
    with read_batches(model) as rows:
        ModelResponder(model, tokenizer, layout=PassLayout("plain")).ask(STATEMENTS, QUESTIONS)
    assert encoded_rows(rows) == len(STATEMENTS) + len(QUESTIONS)


def test_an_edit_between_two_questions_is_seen() -> None:
    model, tokenizer = build("t5")
    responder = ModelResponder(model, tokenizer)
    before = responder.loglikelihood(STATEMENTS)
    with torch.no_grad():
        model.get_encoder().block[0].layer[1].DenseReluDense.wo.weight.mul_(-3)
    after = responder.loglikelihood(STATEMENTS)
    assert all(old.total != new.total for old, new in zip(before, after, strict=True))


def test_a_backend_that_is_kept_sees_an_edit() -> None:
    model, tokenizer = build("t5")
    backend = PassLayout.choose(model).backend(model)
    responder = ModelResponder(model, tokenizer, backend=backend)
    before = responder.loglikelihood(STATEMENTS)
    with read_batches(model) as rows:
        responder.loglikelihood(STATEMENTS)
    assert encoded_rows(rows) == len(ANSWERS)
    with torch.no_grad():
        model.get_encoder().block[0].layer[1].DenseReluDense.wo.weight.mul_(-3)
    after = responder.loglikelihood(STATEMENTS)
    assert all(old.total != new.total for old, new in zip(before, after, strict=True))


class OneOfTwo(OneProcess):
    """A process that takes every second share; those of the other are taken by its twin."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.taken: list[Any] = []

    def deal(self, items: Any, work: Any) -> list[Any]:
        for number, item in enumerate(items):
            if number % 2 == self.rank:
                self.taken.append(work(item))
        raise DealtError


class DealtError(Exception):
    """Ends the question of one process: it has no answers of the other."""


def test_two_processes_read_prompts_in_the_batches_of_one() -> None:
    # A kernel may round by the shape of its batch; equal batches have equal bits.
    model, tokenizer = build("t5")
    statements = [
        Statement(f"{prompt} {'again ' * number}?", answer)
        for number in range(4)
        for prompt, some in ANSWERS.items()
        for answer in some
    ]
    responder = ModelResponder(model, tokenizer, 3)
    with read_batches(model) as alone:
        expected = responder.loglikelihood(statements)
    assert len(alone) > 2
    found: dict[Any, Any] = {}
    for rank in (0, 1):
        process = OneOfTwo(rank)
        with (
            read_batches(model) as batches,
            responder.shared_among(process),
            pytest.raises(DealtError),
        ):
            responder.loglikelihood(statements)
        assert batches
        assert all(batch in alone for batch in batches)
        for part in process.taken:
            found |= part
    rows_of = responder._rows(statements)
    # What is dealt goes by the place of each row, in order.
    places = {row: place for place, row in enumerate(sorted(set(rows_of.values())))}
    nlls = [found[places[rows_of[one]]][1] for one in statements]
    assert nlls == [one.nlls for one in expected]


def test_a_layout_of_two_stacks_is_none_of_a_decoder() -> None:
    tokenizer = build_tokenizer(bos=True)
    responder = ModelResponder(build_tiny("llama"), tokenizer, layout=PassLayout("encoded_once"))
    with pytest.raises(PassLayoutError, match="LlamaForCausalLM has one"):
        responder.loglikelihood(STATEMENTS[:1])


def test_prompts_are_split_by_the_room_for_their_states() -> None:
    prompts = {(number,) * length: number for number, length in enumerate([3, 1, 2, 2, 9], 1)}
    parts = list(parts_of(prompts, most=5))
    assert [[len(ids) for ids in part] for part in parts] == [[9], [3], [2, 2], [1]]
    assert {ids: number for part in parts for ids, number in part.items()} == prompts
    assert list(parts_of({}, most=5)) == []


def test_parts_do_not_change_what_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build("bart")
    whole = ModelResponder(model, tokenizer).ask(STATEMENTS, QUESTIONS)
    monkeypatch.setattr(model_responder, "MOST_TOKENS", 8)
    with read_batches(model) as rows:
        parts = ModelResponder(model, tokenizer).ask(STATEMENTS, QUESTIONS)
    assert len(rows) > 1
    assert encoded_rows(rows) == len(QUESTIONS)
    assert parts[1] == whole[1]
    for one, other in zip(parts[0], whole[0], strict=True):
        assert one.nlls == pytest.approx(other.nlls, abs=1e-5)


def test_states_are_those_of_the_encoder() -> None:
    model, _ = build("t5")
    encoded = EncodedPrompts(model.eval(), [(5, 6, 7), (8,)], 1)
    with torch.no_grad():
        inputs = encoded.inputs([(5, 6, 7), (8,), (5, 6, 7)])
        (expected,) = model.get_encoder()(input_ids=torch.tensor([[8]])).last_hidden_state
    states = inputs["encoder_outputs"].last_hidden_state
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    torch.testing.assert_close(states[1, :1], expected)
    assert states[1, 1:].count_nonzero() == 0
    assert torch.equal(states[0], states[2])


def test_who_hooks_into_two_stacks_gets_a_row_per_text() -> None:
    model, tokenizer = build("t5")
    sharing = ModelResponder(model, tokenizer)
    assert sharing.layout.kind == "encoded_once"
    assert PassLayout.from_dict(sharing.layout.to_dict()) == sharing.layout
    handle = model.get_encoder().register_forward_hook(lambda *call: None)
    with pytest.raises(PassLayoutError, match="encoder got a forward hook after"):
        sharing.loglikelihood(STATEMENTS)
    with pytest.raises(PassLayoutError, match="encoder got a forward hook after"):
        sharing.generate_until(QUESTIONS)
    hooked = ModelResponder(model, tokenizer)
    assert hooked.layout.kind == "padded"
    with read_batches(model) as rows:
        hooked.loglikelihood(STATEMENTS)
    assert encoded_rows(rows) == len(STATEMENTS)
    handle.remove()
