"""A long prefix that prompts share is read once, and changes no text and no score."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_edit.editors import GRACE
from lightning_edit.inference.generation import GreedyGenerator, PartialContinuation, Prompt
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.pass_backends import PlainRows
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.prefix_cache import SharedPrefixes
from lightning_edit.inference.prefix_tree import TokenTree, prefix_batches
from lightning_edit.inference.responder import Question, Statement
from lightning_edit.models.prompt_encoder import PromptEncoder
from tests.models.tiny import build_tiny, build_tokenizer

Ids = tuple[int, ...]


def tokens(count: int, seed: int) -> Ids:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, 60, (count,), generator=generator).tolist())


#: Two contexts, which themselves share some tokens, each before prompts of several lengths; and a
#: prompt of its own.
FIRST, SECOND = (*tokens(20, 0), *tokens(70, 1)), (*tokens(20, 0), *tokens(74, 2))
PROMPTS: list[Ids] = [
    *((*FIRST, *tokens(size, 10 + size)) for size in (3, 5, 8, 4)),
    *((*SECOND, *tokens(size, 20 + size)) for size in (3, 6, 2, 4)),
    tokens(88, 3),
]


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Note the tokens of each call; with a hook prompts would share nothing."""
    read: list[int] = []
    forward = model.forward

    @wraps(forward)
    def count(**inputs: Any) -> Any:
        read.append(inputs["input_ids"].numel())
        return forward(**inputs)

    model.forward = count
    try:
        yield read
    finally:
        del model.forward


def test_each_prefix_is_named_once() -> None:
    found = SharedPrefixes.of(PROMPTS)
    assert found is not None
    assert set(found.prefixes) == {FIRST, SECOND, PROMPTS[-1][:-1]}
    longest = max(map(len, PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        assert found.starts[row] == longest - len(prompt)
        held = found.cached - found.starts[row]
        assert 0 < held < len(prompt)
        assert found.prefixes[found.members[row]][:held] == prompt[:held]


@pytest.mark.parametrize(
    "rows",
    [
        [(5, 6, 7), (5, 6, 8)],  # short
        [FIRST],  # alone
        [tokens(90, seed) for seed in range(6)],  # nothing in common
        [(*FIRST, 7), (*FIRST, 8), *((number,) for number in range(5, 9))],  # short ones with them
    ],
)
def test_what_spares_little_is_left_as_it_is(rows: list[Ids]) -> None:
    assert SharedPrefixes.of(rows) is None


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {}),
    ("bloom", {}),
    ("opt", {"max_position_embeddings": 160}),
    ("gpt_neox", {"max_position_embeddings": 160}),
    ("mistral", {"sliding_window": 6}),
    ("mistral", {"sliding_window": 120}),
    ("gemma3_text", {"sliding_window": 6}),
    ("gemma3_text", {"sliding_window": 100}),
]


@pytest.mark.parametrize(("kind", "changes"), FAMILIES)
def test_prompts_that_share_a_prefix_are_continued_as_alone(
    kind: str, changes: dict[str, Any]
) -> None:
    model = build_tiny(kind, **changes)
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    known: dict[Prompt, PartialContinuation] = {
        (prompt, 4 + 3 * (number % 4)): PartialContinuation((7,) if number % 2 else ())
        for number, prompt in enumerate(PROMPTS)
    }
    alone: dict[Prompt, str] = {}
    for one, found in known.items():
        generator = GreedyGenerator(model, prompts, 1, ("no such text",))
        alone |= generator.texts({one: found})
    assert len(set(alone.values())) > 3
    read = {}
    for shared in (False, True):
        generator = GreedyGenerator(model, prompts, 16, ("no such text",), long_prefixes=shared)
        with counted(model) as calls:
            assert generator.texts(known) == alone
        read[shared] = sum(calls)
    # A window that is shorter than the prefixes keeps too little of them.
    kept = changes.get("sliding_window", 100) >= 100
    assert (2 * read[True] < read[False]) is kept


def test_a_hook_gets_whole_prompts_a_row_each() -> None:
    """As one that steers the last token of each prompt needs them."""
    model = build_tiny("llama")
    prompts = PromptEncoder.for_model(model, build_tokenizer(bos=True))
    known: dict[Prompt, PartialContinuation] = {(one, 6): PartialContinuation() for one in PROMPTS}

    def steer(module: object, args: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            shapes.append(tuple(hidden.shape[:2]))
            hidden[:, -1] += 0.5
        return output

    shapes: list[tuple[int, ...]] = []
    hook = model.model.layers[1].register_forward_hook(steer)
    texts = [
        GreedyGenerator(model, prompts, 16, ("no such text",), long_prefixes=shared).texts(known)
        for shared in (False, True)
    ]
    hook.remove()
    assert texts[0] == texts[1]
    assert set(shapes) == {(len(PROMPTS), max(map(len, PROMPTS)))}


@pytest.mark.parametrize("hinder", ["decides", "cache", "backend"])
def test_who_needs_whole_prompts_gets_them(hinder: str) -> None:
    model = build_tiny("llama")
    responder = ModelResponder(model, build_tokenizer(bos=True))
    assert responder._generator(()).long_prefixes
    if hinder == "decides":
        responder = GRACE().bind(model, build_tokenizer(bos=True)).responder([])
    if hinder == "cache":
        model.generation_config.cache_implementation = "static"
    if hinder == "backend":
        responder.backend = PlainRows()
    assert not responder._generator(()).long_prefixes


@pytest.mark.parametrize(
    ("kind", "changes", "fits"),
    [
        ("llama", {}, True),
        ("bloom", {}, True),
        ("gemma3_text", {"sliding_window": 100}, True),
        ("gemma3_text", {"sliding_window": 90}, False),
        ("roformer", {"is_decoder": True}, False),
    ],
)
def test_models_that_keep_too_little_read_nothing_twice(
    kind: str, changes: dict[str, Any], fits: bool
) -> None:
    if kind == "roformer":  # which counts positions from what it is given
        config = AutoConfig.for_model(
            kind,
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            **changes,
        )
        model: Any = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = build_tiny(kind, **changes)
    found = SharedPrefixes.of(PROMPTS[:4])
    assert found is not None
    assert found.fit(model) is fits


# ------------------------------------------------------------------------------------------ trees


def test_a_tree_of_a_long_prefix_is_larger() -> None:
    rows = [(*tokens(300, 1), number, number) for number in range(5, 50)] + [(5, 6), (5, 7)]
    groups = prefix_batches(rows, 64, 256, long_prefixes=True)
    assert sorted(map(len, groups)) == [2, 45]
    assert sorted(number for group in groups for number in group) == list(range(len(rows)))
    assert len(prefix_batches(rows, 64, 256)) == 46
    # At most as many tokens of their own as they share.
    many = [(*tokens(300, 1), number % 50 + 5, *tokens(20, number)) for number in range(40)]
    for group in prefix_batches(many, 64, 256, long_prefixes=True):
        assert TokenTree.of([many[number] for number in group]).ids.shape[1] <= 602
    assert len(prefix_batches(many, 64, 256, long_prefixes=True)) < 6
    assert len(prefix_batches(many, 8, 256, long_prefixes=True)) == 5


def test_a_mask_is_the_same_however_it_is_made() -> None:
    for rows in (PROMPTS, [(5, 6, 7), (5, 6), (5, 8, 9), (4,)], [FIRST]):
        tree = TokenTree.of(rows)
        assert torch.equal(tree.attention_mask(), tree._by_parents())


def test_prompts_with_short_prefixes_are_batched_as_before() -> None:
    rows = [(*tokens(40, seed % 3), *tokens(10, seed)) for seed in range(40)]
    assert prefix_batches(rows, 64, 256, long_prefixes=True) == prefix_batches(rows, 64, 256)


FACTS = "".join(f"Imagine that the capital of France is {name}\n" for name in ("Rome", "Lyon") * 9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gemma3_text"])
def test_scores_behind_a_long_prefix_are_those_of_each_text_alone(kind: str) -> None:
    tokenizer = build_tokenizer(bos=True)
    long = {"gpt2": {"n_positions": 512}, "bloom": {}}
    model = build_tiny(kind, **long.get(kind, {"max_position_embeddings": 512}))
    asked = [f"{FACTS}{text}" for text in ("Lyon lies in", "The river of Lyon is the", "Rome has")]
    statements = [Statement(one, answer) for one in asked for answer in ("Paris", "Rome and Lyon")]
    questions = [Question(one, 6) for one in asked]
    plain = ModelResponder(model, tokenizer, 1, PassLayout("plain"))
    expected, texts = plain.ask(statements, questions)
    shared = ModelResponder(model, tokenizer)
    assert shared.layout.long_prefixes
    with counted(model) as calls:
        found, again = shared.ask(statements, questions)
    assert again == texts
    for one, other in zip(found, expected, strict=True):
        assert one.best == other.best
        assert one.nlls == pytest.approx(other.nlls, abs=1e-4)
    prefix = len(tokenizer(FACTS)["input_ids"])
    assert prefix > 256
    if kind != "bloom":  # which has a bias in its attention, and no trees
        assert sum(calls) < 3 * prefix


def test_a_run_that_began_without_goes_on_without() -> None:
    chosen = PassLayout.choose(build_tiny("llama"))
    assert PassLayout.from_dict(chosen.to_dict()) == chosen
    before = {"kind": "prefix_tree", "after_answer": [], "products": "torch"}
    assert not PassLayout.from_dict(before).long_prefixes
    with pytest.raises(ValueError, match="`long_prefixes` as true or false"):
        PassLayout.from_dict({**before, "long_prefixes": "yes"})
