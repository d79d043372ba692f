"""What a forced pass tells of a continuation is not generated again, and changes no text."""

from typing import Any

import pytest
from torch import Tensor, nn

from lightning_edit.evaluation.scorer import Scorer, probes_of
from lightning_edit.inference.generation import (
    GreedyGenerator,
    PartialContinuation,
    _Row,
    follow,
    neutral_settings,
)
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest, Probe
from tests.models.tiny import build_tiny, build_tokenizer


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_tiny("llama")


def test_a_forced_pass_tells_tokens_up_to_the_first_other_choice() -> None:
    assert follow((5, 6, 7), (5, 6, 7, 8)) == (5, 6, 7, 8)
    assert follow((5, 6, 7), (5, 9, 7, 8)) == (5, 9)
    assert follow((5, 6, 7), (4, 6, 7, 8)) == (4,)


def test_a_beginning_is_all_there_is_at_an_end_token_a_line_end_or_the_limit(
    model: nn.Module,
) -> None:
    tokenizer = build_tokenizer(bos=True)
    writer = GreedyGenerator(model, PromptEncoder(tokenizer), 4)
    end = writer.ends[0]
    words = tuple(tokenizer("Rome Paris", add_special_tokens=False)["input_ids"])
    assert writer.begun((*words, end, 5), 16) == PartialContinuation(words, done=True)
    assert writer.begun(words, len(words)).done
    assert not writer.begun(words, len(words) + 1).done
    assert writer.begun((), 3) == PartialContinuation((), done=False)


def test_known_beginnings_change_no_text(model: nn.Module) -> None:
    tokenizer = build_tokenizer(bos=True)
    free = Scorer(model, tokenizer, modes=("gen",), max_new_tokens=9)
    # What the model writes is given as answers, whole or in part, so that the pass tells much.
    prompts = ["The capital of France is", "Lyon lies in", "The river that flows through Lyon is"]
    asked = [EditRequest(str(n), prompt, "Rome") for n, prompt in enumerate(prompts)]
    texts = [free.score(list(probes_of(one)))[0].generated for one in asked]
    for share in (1, 2, 3):
        answers = [str(text)[: max(1, len(str(text)) // share)] for text in texts]
        told = [
            EditRequest(one.id, one.prompt, "Rome", probes=(Probe.of("one_hop", one.prompt, a),))
            for one, a in zip(asked, answers, strict=True)
        ]
        scorer = Scorer(model, tokenizer, max_new_tokens=9)
        found = [scorer.score(list(probes_of(one)))[-1].generated for one in told]
        assert found == texts


def test_settings_that_forbid_tokens_leave_writing_to_the_model() -> None:
    model = build_tiny("llama")
    writer = GreedyGenerator(model, PromptEncoder(build_tokenizer()), 4)
    assert writer.is_plain
    model.generation_config.suppress_tokens = [5]
    assert not writer.is_plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_strings", ["the"]),
        ("token_healing", True),
        ("exponential_decay_length_penalty", (0, 9.0)),
        ("max_time", 0.0),
        ("prefill_chunk_size", 2),
        ("assistant_early_exit", 1),
        ("prompt_lookup_num_tokens", 2),
        ("encoder_repetition_penalty", 3.0),
    ],
)
def test_a_models_own_settings_do_not_change_what_is_greedy(name: str, value: Any) -> None:
    model = build_tiny("llama")
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    known = {((5, 6, 7, 5, 6), 6): PartialContinuation()}
    expected = GreedyGenerator(model, prompts, 1).texts(known)
    setattr(model.generation_config, name, value)
    given = neutral_settings(model)
    assert list(given) == [name]
    assert given[name] != value
    assert GreedyGenerator(model, prompts, 1).texts(known) == expected
    assert getattr(model.generation_config, name) == value


@pytest.mark.parametrize("leave", [True, False])
def test_a_row_that_ends_with_the_models_positions_holds_up_no_other(leave: bool) -> None:
    model = build_tiny("gpt2")
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    room = prompts.limits.positions
    assert room is not None
    long = ((5,) * (room - 2), 2)
    known = {long: PartialContinuation(), ((5, 6), 9): PartialContinuation()}
    generator = GreedyGenerator(model, prompts, 4, ("no such text",), rows_may_leave=leave)
    texts = generator.texts(known)
    for one in known:
        alone = GreedyGenerator(model, prompts, 1, ("no such text",)).texts({one: known[one]})
        assert texts[one] == alone[one]


#: Limits of a batch: rows leave it one after the other.
LIMITS = (3, 6, 9, 14, 16, 5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("bloom", {}),
        ("opt", {}),
        ("mistral", {"sliding_window": 6}),
        ("gemma3_text", {"sliding_window": 6}),
    ],
)
def test_rows_that_leave_a_batch_change_no_text_and_prompts_are_read_once(
    kind: str, changes: dict[str, object]
) -> None:
    model = build_tiny(kind, **changes)
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    asked = ["France", "Lyon lies in France and", "The river Rhône flows through Lyon, Avignon"]
    known = {
        ((*prompts.tokenizer(asked[n % 3])["input_ids"], n + 5), limit): (
            PartialContinuation((7,) if n % 2 else ())
        )
        for n, limit in enumerate(LIMITS)
    }
    read: list[int] = []

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Tensor]) -> None:
        ids = kwargs["input_ids"]
        read.append(ids.numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    alone, texts = {}, {}
    for one, found in known.items():
        generator = GreedyGenerator(model, prompts, 1, ("no such text",), rows_may_leave=False)
        alone |= generator.texts({one: found})
    for leave in (False, True):
        read.clear()
        generator = GreedyGenerator(model, prompts, 8, ("no such text",), rows_may_leave=leave)
        texts[leave] = (generator.texts(known), sum(read), read[0])
    hook.remove()
    assert texts[True][0] == texts[False][0] == alone
    # Of the later passes none reads a prompt, and complete rows are in none.
    prompt_tokens = texts[True][2]
    assert texts[True][1] <= prompt_tokens + sum(-(-limit // 4) * 4 for limit in LIMITS)
    assert texts[True][1] < texts[False][1]


def test_settings_that_name_a_kind_of_cache_generate_the_same() -> None:
    model = build_tiny("llama")
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    known = {((5, 6, n), 6 + n): PartialContinuation() for n in range(3)}
    texts = []
    for kind in (None, "dynamic"):
        model.generation_config.cache_implementation = kind
        texts.append(GreedyGenerator(model, prompts, 4, ("no such text",)).texts(known))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", ["bart", "mbart", "pegasus"])
def test_a_text_ends_with_the_decoders_positions(family: str) -> None:
    model = build_tiny(family)
    prompts = PromptEncoder.for_model(model, build_tokenizer(eos=True))
    room = prompts.limits.decoder
    assert room == 64
    forced = [
        model.generation_config.forced_bos_token_id,
        model.generation_config.forced_eos_token_id,
    ]
    left = room - sum(one is not None for one in forced)
    writer = GreedyGenerator(model, prompts, 4)
    writer.ends = []  # the text goes on to its limit
    (short,), (long,) = (
        writer._generate([_Row(((5, 6, 2), limit), ())], limit, None) for limit in (left, 200)
    )
    assert len(short) == left
    assert long == short
