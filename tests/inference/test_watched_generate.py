"""Edits that decide once a prompt, in `generate`: whatever way it reads, the prompt decides."""

import copy
from inspect import signature
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.module_adapter import attached
from lightning_edit.inference.packed.backend import NotPackableError
from tests.inference.prompt_shift import (
    MODELS,
    PROMPTS,
    Shift,
    ids_of,
    padded,
    shifted,
    site,
)
from tests.models.tiny import build_tiny


@pytest.mark.parametrize("kind", MODELS)
def test_generate_decides_at_the_end_of_its_prompt_however_it_reads(kind: str) -> None:
    model, tokenizer, adapter = shifted(kind)
    # Prompt lookup of transformers 5.0 needs an end token.
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": 2}
    for prompt in PROMPTS:
        adapter.decided.clear()
        ids = torch.tensor([ids_of(tokenizer, [prompt])[0] * 2])  # repeats, so that drafts are made
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        plain = model.generate(**asked, **greedy, pad_token_id=0)
        [decision] = adapter.decided
        ways: list[dict[str, Any]] = [
            {"use_cache": False},
            {"prompt_lookup_num_tokens": 3},
            {"assistant_model": build_tiny(kind, seed=1)},
        ]
        for way in ways:
            adapter.decided.clear()
            found = model.generate(**asked, **greedy, **way, pad_token_id=0)
            # transformers 5.0 may keep one drafted token too many.
            assert torch.equal(found[:, : plain.shape[1]], plain), way
            assert adapter.decided
            assert all(torch.equal(one, decision) for one in adapter.decided), way
        assert torch.equal(model.generate(ids, **greedy, pad_token_id=0), plain)


def test_a_prompt_that_generate_reads_in_parts_is_refused() -> None:
    model, tokenizer, adapter = shifted("llama")
    ids = torch.tensor(ids_of(tokenizer, PROMPTS[:1]))
    settings: dict[str, Any] = {"max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
    assert ids.shape[1] > 3
    with pytest.raises(ArchitectureError, match=r"reads 3 of the .* `prefill_chunk_size` to None"):
        model.generate(ids, **settings, prefill_chunk_size=3, past_key_values=DynamicCache())
    assert not adapter.decided
    one_chunk = {"prefill_chunk_size": ids.shape[1], "past_key_values": DynamicCache()}
    whole = model.generate(ids, **settings, **one_chunk)
    turn = model.generate(ids, **settings, return_dict_in_generate=True)
    assert torch.equal(whole, turn.sequences)
    longer = torch.cat([turn.sequences, ids], 1)
    with pytest.raises(ArchitectureError, match="whole text without `past_key_values`"):
        model.generate(longer, **settings, past_key_values=turn.past_key_values)
    again = model.generate(turn.sequences, **settings, past_key_values=turn.past_key_values)
    assert torch.equal(again[:, : turn.sequences.shape[1]], turn.sequences)  # it goes on
    assert model.generate(longer, **settings).shape[1] == longer.shape[1] + 3
    assert model.generate(**settings, bos_token_id=1).shape[1] == 4  # from a BOS of its own


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_padding_is_known_behind_a_static_cache_too(kind: str) -> None:
    model, tokenizer, adapter = shifted(kind)
    rows = padded(ids_of(tokenizer, PROMPTS), left=True)
    del rows["position_ids"]
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    seen: list[Tensor] = []
    adapter.noted = seen
    plain = model.generate(**rows, **settings, pad_token_id=0)
    static = model.generate(**rows, **settings, pad_token_id=0, cache_implementation="static")
    assert torch.equal(plain, static)
    real = rows["attention_mask"].bool()
    assert len(seen) == 2
    assert all(torch.equal(one, real) for one in seen)


def test_prompts_in_one_row_and_guidance_are_refused() -> None:
    model, tokenizer, adapter = shifted("llama")
    rows = ids_of(tokenizer, PROMPTS)
    with pytest.raises(ArchitectureError, match="`generate_batch` puts several prompts into one"):
        model.generate_batch(inputs=rows)
    with pytest.raises(ArchitectureError, match="set `guidance_scale` to None"):
        model.generate(torch.tensor(rows[:1]), guidance_scale=1.5)
    model.generation_config.guidance_scale = 2.0
    one = torch.tensor(rows[:1])
    assert model.generate(one, guidance_scale=None, max_new_tokens=1, pad_token_id=0).numel()
    adapter.decided.clear()
    with pytest.raises(ArchitectureError, match="set `guidance_scale` to None"):
        model.generate(torch.tensor(rows[:1]))
    ids = torch.tensor(rows[:1])
    bounds = torch.tensor([0, ids.shape[1]])
    with pytest.raises(NotPackableError):
        model(ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)
    assert not adapter.decided


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_with_edits_drafts_for_another_and_for_itself(kind: str) -> None:
    model, tokenizer, _ = shifted(kind)
    ids = torch.tensor(ids_of(tokenizer, PROMPTS[:1]))
    settings: dict[str, Any] = {
        "max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    other = build_tiny(kind, seed=1)
    expected = other.generate(ids, **settings)
    assert torch.equal(other.generate(ids, **settings, assistant_model=model), expected)
    own = model.generate(ids, **settings)
    depth = model.config.num_hidden_layers
    try:
        build_tiny(kind).generate(ids, **settings, assistant_early_exit=2)
    except TypeError:
        pytest.skip("this version of transformers cannot exit early")
    assert torch.equal(model.generate(ids, **settings, assistant_early_exit=2), own)
    assert model.config.num_hidden_layers == depth


@pytest.mark.parametrize("use_cache", [True, False])
def test_somebodys_own_calls_inside_generate_decide_for_themselves(use_cache: bool) -> None:
    model, tokenizer, _ = shifted("llama")
    asked = [torch.tensor([ids]) for ids in ids_of(tokenizer, PROMPTS)]
    alone = [model(ids).logits for ids in asked]
    found: list[Tensor] = []

    class Asks(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            found.extend(model(ids).logits for ids in asked)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    settings: dict[str, Any] = {
        "max_new_tokens": 2, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
        "use_cache": use_cache,
    }  # fmt: skip
    for ids in asked:
        found.clear()
        plain = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, **settings, stopping_criteria=[Asks()]), plain)
        assert len(found) == 6
        assert all(torch.equal(a, b) for a, b in zip(found, alone * 2, strict=True))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning")
@pytest.mark.parametrize("use_cache", [True, False])
def test_soft_prompts_are_part_of_the_prompt(use_cache: bool) -> None:
    model, tokenizer, adapter = shifted("llama")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned: Any = get_peft_model(model, config)
    ids = torch.tensor(ids_of(tokenizer, PROMPTS[:1]))
    adapter.noted = []
    tuned(input_ids=ids)
    settings: dict[str, Any] = {
        "max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
        "use_cache": use_cache,
    }  # fmt: skip
    tuned.generate(input_ids=ids, **settings)
    width = ids.shape[1] + 4
    assert len(adapter.noted) >= 2
    assert all(int(one.sum()) == width and one[:, :width].all() for one in adapter.noted)
    first, *others = adapter.decided
    assert all(torch.equal(one, first) for one in others)


def test_generate_of_another_library_is_kept_and_comes_back() -> None:
    model = build_tiny("llama")
    own, asked = model.generate, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(args))
        return own(*args, **kwargs)

    model.__dict__["generate"] = theirs
    with attached(model, {site(model): Shift(32)}):
        assert signature(model.generate) == signature(theirs)
        twin = copy.deepcopy(model)
        model.generate(torch.tensor([[1, 7, 9]]), max_new_tokens=2, pad_token_id=0)
        assert len(asked) == 1
        assert twin.generate.model is twin
    assert model.generate is theirs
