"""Adapters on modules: decisions once a prompt in every kind of call, and no trace afterwards."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError, PassLayoutError
from lightning_edit.inference.answer_gradients import answer_factors
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.call_inputs import real_positions
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.model_call import ModelCall, calls_of
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.module_adapter import ModuleAdapter, attach, attached
from lightning_edit.inference.pass_layout import PassLayout
from lightning_edit.inference.responder import Question
from lightning_edit.inference.teacher_forcing import TeacherForcing
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import resolve
from tests.inference.prompt_shift import (
    MODELS,
    PROMPTS,
    Shift,
    end_state,
    ids_of,
    padded,
    shifted,
    site,
)
from tests.models.tiny import build_tiny, build_tokenizer


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_is_decided_once_however_it_is_asked(kind: str) -> None:
    model, tokenizer, adapter = shifted(kind)
    responder = ModelResponder(model, tokenizer)
    assert responder.layout.kind == "plain"
    questions = [Question(prompt, 6) for prompt in PROMPTS]
    together = responder.generate_until(questions, ())
    assert {bool(one) for mask in adapter.decided for one in mask} == {True, False}
    assert together == [responder.generate_until([one], ())[0] for one in questions]
    hit = [bool(end_state(kind, tokenizer, p)[adapter.entry] > 0) for p in PROMPTS]
    plain = build_tiny(kind)
    bare = ModelResponder(plain, tokenizer, layout=responder.layout)
    for mine, theirs, acts in zip(together, bare.generate_until(questions, ()), hit, strict=True):
        assert acts or mine == theirs
    for left in (True, False):  # somebody else's calls
        rows = padded(ids_of(tokenizer, PROMPTS), left)
        adapter.decided.clear()
        logits, own = model(**rows).logits, plain(**rows).logits
        assert adapter.decided[-1].tolist() == hit
        real = rows["attention_mask"].bool()
        changed = [not torch.equal(logits[n][real[n]], own[n][real[n]]) for n in range(len(hit))]
        assert changed == hit
    rows = padded(ids_of(tokenizer, PROMPTS), left=True)
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    del rows["position_ids"]
    theirs = model.generate(**rows, **greedy, pad_token_id=0)[:, rows["input_ids"].shape[1] :]
    given = {
        (tuple(ids), tuple(new))
        for ids, new in zip(ids_of(tokenizer, PROMPTS), theirs.tolist(), strict=True)
    }
    forced = TeacherForcing(model, 8, responder.layout, observer=responder.observe)(given, {})
    assert all(forced[row].best == row[1] for row in given)


@torch.no_grad()
def test_decisions_live_as_long_as_the_kv_cache_that_holds_the_prompt() -> None:
    model, tokenizer, adapter = shifted("llama")
    rows = [torch.tensor(ids_of(tokenizer, [prompt])) for prompt in PROMPTS]
    first = [model(row, use_cache=True) for row in rows]  # three prompts, interleaved
    assert len(adapter.decided) == 3
    step = torch.tensor([[7]])
    after = [model(step, past_key_values=copy.deepcopy(one.past_key_values)) for one in first]
    again = [model(step, past_key_values=one.past_key_values) for one in first]
    assert len(adapter.decided) == 3
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(after, again, strict=True))
    whole = [
        model(torch.cat([row, step], 1)).logits[:, -1] for row in rows
    ]  # decides at the step: may differ, so only its number of decisions is looked at
    assert len(adapter.decided) == 6
    assert len(whole) == 3
    with pytest.raises(ArchitectureError, match="KV cache of 1 prompts is continued with 2 rows"):
        model(torch.tensor([[7], [7]]), past_key_values=first[0].past_key_values)


@pytest.mark.parametrize("form", ["bool", "float", "by layer", "by place"])
def test_padding_is_read_from_every_form_of_mask(form: str) -> None:
    # Gemma 3 has layers of two kinds, and takes a mask for each.
    model, tokenizer, adapter = shifted("gemma3_text" if form == "by layer" else "llama")
    adapter.noted = []
    with pytest.raises(ArchitectureError, match="of type object does not tell"):
        real_positions(object(), 2, 3, 0)
    rows = padded(ids_of(tokenizer, PROMPTS), left=False)
    real = rows["attention_mask"].bool()
    causal = torch.ones(real.shape[1], real.shape[1]).tril().bool()
    whole = (causal & real[:, None, :])[:, None]
    if form == "by place":
        model(rows["input_ids"], rows["attention_mask"], rows["position_ids"])
    else:
        mask: Any = whole
        if form != "bool":
            mask = torch.where(whole, 0.0, torch.finfo(torch.float32).min)
        kinds = ("sliding_attention", "full_attention")
        rows["attention_mask"] = dict.fromkeys(kinds, mask) if form == "by layer" else mask
        model(**rows)
    assert torch.equal(adapter.noted[-1], real)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_mask_by_place_is_known_behind_a_wrapper_too() -> None:
    model, tokenizer, adapter = shifted("llama")
    wrapped: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    rows = padded(ids_of(tokenizer, PROMPTS), left=False)
    adapter.noted = []
    attach(wrapped, {f"base_model.model.{site(model)}": adapter})
    wrapped(rows["input_ids"], rows["attention_mask"])
    assert torch.equal(adapter.noted[-1], rows["attention_mask"].bool())


@torch.no_grad()
def test_a_cache_of_a_part_of_a_prompt_is_not_taken_for_a_prompt() -> None:
    model, tokenizer, adapter = shifted("llama")
    ids = torch.tensor(ids_of(tokenizer, PROMPTS[:1]))
    part = model(ids[:, :-1], use_cache=True).past_key_values
    with pytest.raises(ArchitectureError, match="or of a part of the prompt, does not hold"):
        model.generate(ids, past_key_values=copy.deepcopy(part), max_new_tokens=2, pad_token_id=0)
    begun = model(ids[:, :2], use_cache=True).past_key_values
    with pytest.raises(ArchitectureError, match=r"read behind a KV cache of 2.*one token"):
        model(ids[:, 2:], past_key_values=begun)
    one = ids[:, -1:]
    by_name = model(one, past_key_values=copy.deepcopy(part)).logits
    assert torch.equal(model(one, None, None, part).logits, by_name)  # by place
    assert len(adapter.decided) == 2


def test_a_cache_filled_under_other_edits_is_refused() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    with attached(model, {site(model): Shift(32)}):
        cache = model(torch.tensor(ids_of(tokenizer, PROMPTS[:1])), use_cache=True).past_key_values
    refused = pytest.raises(ArchitectureError, match="before the present edits came into force")
    with attached(model, {site(model): Shift(32)}), refused:
        model(torch.tensor([[7]]), past_key_values=cache)


def test_a_cache_filled_before_the_edits_is_refused() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    cache = model(torch.tensor(ids_of(tokenizer, PROMPTS[:1])), use_cache=True).past_key_values
    refused = pytest.raises(ArchitectureError, match="filled before the present edits")
    with attached(model, {site(model): Shift(32)}), refused:
        model(torch.tensor([[7]]), past_key_values=cache)
    model(torch.tensor([[7]]), past_key_values=cache)


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_left_and_names_never_change(kind: str) -> None:
    model, plain = build_tiny(kind), build_tiny(kind)
    name, before = site(model), dict(model.named_modules())
    ids = torch.tensor([[1, 7, 9, 11]])
    detach = attach(model, {name: Shift(32)})
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(model.get_submodule(name), type(plain.get_submodule(name)))
    assert resolve(model).down_projection(1) == name
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, model(ids).logits)
    detach()
    after = dict(model.named_modules())
    assert all(after[one] is module for one, module in before.items())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(m.__dict__.keys() == p.__dict__.keys() for m, p in zip_modules(model, plain))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert not torch.equal(twin(torch.tensor([[1, 7]])).logits, model(ids[:, :2]).logits) or (
        calls_of(twin) is not None
    )


def zip_modules(one: nn.Module, other: nn.Module) -> Any:
    return zip(one.modules(), other.modules(), strict=True)


def test_a_failed_pass_leaves_nothing_behind() -> None:
    model, tokenizer, _ = shifted("gpt2")
    with pytest.raises(IndexError):
        model(torch.tensor([[100000]]))
    calls = calls_of(model)
    assert calls is not None
    with pytest.raises(ArchitectureError, match="outside a call of its model"):
        _ = calls.current
    model.base_model(torch.tensor(ids_of(tokenizer, PROMPTS[:1])))  # a feature extractor's call


def test_hidden_states_are_read_row_by_row_where_a_prompt_is_decided() -> None:
    model, tokenizer, adapter = shifted("llama")
    view = resolve(model)
    texts = [
        TokenizedText(n, tuple(ids), len(ids) - 1)
        for n, ids in enumerate(ids_of(tokenizer, PROMPTS))
    ]
    name = view.blocks[2].name
    read = read_last(view, texts, {name: "output"}, 8)[name]
    for text, state in zip(texts, read, strict=True):
        alone = read_last(view, [text], {name: "output"}, 8)[name][0]
        torch.testing.assert_close(alone, state, rtol=1e-5, atol=1e-5)
    assert [len(mask) for mask in adapter.decided] == [3, 1, 1, 1]


def test_a_layout_that_shares_prompts_is_refused_once_edits_decide_by_prompt() -> None:
    model = build_tiny("gpt2")
    layout = PassLayout.choose(model)
    assert layout.kind == "prefix_tree"
    with attached(model, {site(model): Shift(32)}):
        with pytest.raises(PassLayoutError, match="decide once a prompt"):
            layout.require(model)
        assert PassLayout.choose(model).kind == "plain"
    layout.require(model)


def test_an_adapter_replaces_another_for_a_while_and_a_wrapped_forward_is_kept() -> None:
    model = build_tiny("gpt2")
    name, ids = site(model), torch.tensor([[1, 7, 9]])
    module = model.get_submodule(name)
    own = module.forward
    module.__dict__["forward"] = lambda hidden: own(hidden) * 2.0  # as accelerate does
    doubled = model(ids).logits
    with attached(model, {name: Shift(32)}):
        outer = model(ids).logits
        with attached(model, {name: _Zero()}):
            assert not torch.equal(model(ids).logits, outer)
        assert torch.equal(model(ids).logits, outer)
    assert torch.equal(model(ids).logits, doubled)


class _Zero(ModuleAdapter):
    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        assert call is None
        return torch.zeros_like(output)


def test_training_and_gradients_decide_at_the_prompts_end_too() -> None:
    model, tokenizer, adapter = shifted("llama")
    view = resolve(model)
    asked = {tuple(ids): (5, 6, 7) for ids in ids_of(tokenizer, PROMPTS)}
    rows = list(asked.items())
    model(**padded([list(prompt) for prompt in asked], left=False))
    expected = adapter.decided.pop().tolist()
    batch = AnswerRows.pad(rows)
    assert batch.prompt_ends == [len(prompt) - 1 for prompt in asked]
    adapter.decided.clear()
    answer_logits(model, batch)
    taken = sorted(bool(one) for mask in adapter.decided for one in mask)
    assert taken == sorted(expected)
    adapter.decided.clear()
    answer_factors(view, rows, [view.down_projection(2)])
    assert adapter.decided[-1].tolist() == expected
    adapter.decided.clear()
    model(input_ids=batch.ids, attention_mask=batch.mask.long())  # a foreign call: the last token
    assert adapter.decided[-1].tolist() != expected


def test_a_pickle_of_a_model_with_edits_is_refused_and_copies_are_not() -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer(bos=True)
    with attached(model, {site(model): Shift(resolve(model).hidden_size, 0)}):
        with pytest.raises(pickle.PicklingError, match="undo"):
            torch.save(model, io.BytesIO())
        ids = torch.tensor(ids_of(tokenizer, PROMPTS[:1]))
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
    file = io.BytesIO()
    torch.save(model, file)
    assert file.tell()
