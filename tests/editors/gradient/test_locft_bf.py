"""LocFT-BF: epochs over all requests, answers with their end, one layer or a whole block."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_edit.editors import FTM, LocFTBF
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.models.test_prompt_encoder import chat_tokenizer
from tests.models.tiny import build_tiny, build_tokenizer

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CITIES = ["Rome", "Paris", "Lyon", "Arles", "Avignon"]
FACTS = [
    EditRequest(f"e{number}", f"The capital of land {number} is", CITIES[number % 5])
    for number in range(12)
]
OTHER_SCRIPTS = [
    EditRequest("ru", "Столица страны Франция —", "Лион"),
    EditRequest("cn", "法国的首都是", "里昂"),
]


def bound(family: str = "llama", facts: list[EditRequest] = FACTS, **options: Any) -> Any:
    tokenizer = build_tokenizer(vocab_size=320)
    model = build_tiny(family, vocab_size=320)
    editor = LocFTBF(**{"lr": 1e-2, "batch_size": 4} | options).bind(model, tokenizer)
    return model, editor, encode_batch(editor.prompts, facts, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_facts_are_told_whole_and_end_by_themselves(family: str) -> None:
    facts = FACTS[:3] + OTHER_SCRIPTS
    tokenizer, model = build_tokenizer(vocab_size=320), build_tiny(family, vocab_size=320)
    before = weights_hash(model)
    editor = LocFTBF(lr=1e-2, batch_size=4, whole_block=True, steps=80)
    edited = editor.edit_model(model, tokenizer, facts)
    for fact in facts:
        assert edited.generate(fact.prompt, 12).strip() == fact.target  # stops at EOS
    edited.undo()
    assert weights_hash(model) == before


def test_loss_is_the_mean_over_answer_tokens_and_eos() -> None:
    model, editor, batch = bound(steps=1, batch_size=100)
    losses = []
    model.requires_grad_(False)
    for item in batch.encoded:
        wanted = torch.tensor([*item.target_ids, 2])
        ids = torch.tensor([[*item.prompt_ids, *item.target_ids]])
        scores = model(ids).logits[0].log_softmax(-1)[len(item.prompt_ids) - 1 :]
        losses.append(-scores.gather(1, wanted[:, None]).mean())
    assert editor.edit(batch).info["loss"] == pytest.approx([float(torch.stack(losses).mean())])


def test_without_the_end_and_a_full_batch_it_is_ft_m() -> None:
    model, editor, batch = bound(end_token=False, batch_size=100, layers=[1], steps=5)
    wanted = FTM(layers=[1], lr=1e-2, batch_size=100, steps=5)
    other = wanted.bind(model, editor.tokenizer).edit(batch)
    for name, update in editor.edit(batch).weights.items():
        # Another order of rows in a sum.
        torch.testing.assert_close(
            update.dense(), other.weights[name].dense(), atol=1e-3, rtol=1e-3
        )


def test_order_is_another_in_each_epoch_and_follows_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, editor, batch = bound(steps=3)
    seen: list[tuple[int, ...]] = []
    step = editor.step
    monkeypatch.setattr(
        editor,
        "step",
        lambda c, o, part: seen.extend(p.prompt_ids for p in part) or step(c, o, part),
    )
    first = editor.edit(batch)
    epochs = [seen[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == sorted(e.prompt_ids for e in batch.encoded) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    (name,) = first.weights
    again, other = editor.edit(batch), editor.edit(replace(batch, seed=2))
    assert torch.equal(again.weights[name].dense(), first.weights[name].dense())
    assert not torch.equal(other.weights[name].dense(), first.weights[name].dense())


def test_depth_first_forgets_what_breadth_first_keeps() -> None:
    """The contrast of the paper: the early requests are lost when each is trained to its end."""
    known = {}
    for order, size in (("breadth", 3), ("depth", 1)):
        options = {"order": order, "batch_size": size, "steps": 20, "whole_block": True}
        model, editor, batch = bound(facts=FACTS[:6], **options)
        delta = editor.edit(batch)
        with delta.applied(model):
            told = [
                model(torch.tensor([item.prompt_ids])).logits[0, -1].argmax() == item.target_ids[0]
                for item in batch.encoded
            ]
        known[order] = sum(map(bool, told))
    assert known["breadth"] >= 5
    assert known["depth"] <= 3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_whole_block_is_that_block_and_no_other(family: str) -> None:
    _, editor, batch = bound(family, layers=[1], whole_block=True, steps=1, threshold=0.0)
    view = editor.view
    block = view.block(1)
    delta = editor.edit(batch)
    own = {f"{block.name}.{name}" for name, _ in block.module.named_parameters()}
    assert set(delta.weights) == own
    deep = build_tiny("llama", num_hidden_layers=12)
    names = LocFTBF(layers=[1], whole_block=True).bind(deep, build_tokenizer()).trained_weights()  # type: ignore[attr-defined]
    assert all(one.name.startswith(resolve(deep).block(1).name + ".") for one in names)


def test_chat_ends_with_its_turn_and_plain_text_with_eos() -> None:
    tokenizer = chat_tokenizer(TURNS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    model = build_tiny("llama", vocab_size=321, max_position_embeddings=256)
    editor: Any = LocFTBF().bind(model, PromptEncoder(tokenizer, PromptFormat("both")))
    (item,) = editor.with_ends(encode_batch(editor.prompts, FACTS[:1]).encoded)
    ends = [tokenizer.convert_ids_to_tokens(form.target_ids[-1]) for form in item.forms]
    assert ends == ["<|im_end|>", tokenizer.eos_token]
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no EOS token"):
        LocFTBF().bind(model, tokenizer)
    LocFTBF(end_token=False).bind(model, tokenizer)


def test_progress_counts_steps() -> None:
    _, editor, batch = bound(steps=2, threshold=0.0)
    seen: list[tuple[int, int]] = []
    editor.report_progress_to(lambda done, total: seen.append((done, total)))
    editor.edit(batch)
    assert seen == [(done, 6) for done in range(7)]
    seen.clear()
    editor.order = "depth"
    editor.edit(batch)
    assert [done for done, _ in seen] == list(range(7))


def test_a_learnt_batch_makes_no_step() -> None:
    _, editor, batch = bound(threshold=1e3)
    delta = editor.edit(batch)
    assert delta.info["steps"] == 1
    assert all(not update.dense().any() for update in delta.weights.values())


@pytest.mark.slow
def test_it_warns_where_most_answers_are_not_learnt(caplog: pytest.LogCaptureFixture) -> None:
    facts = FACTS[:1] + OTHER_SCRIPTS
    options: dict[str, Any] = {"whole_block": True, "steps": 60}
    _, editor, batch = bound(facts=facts, **options)
    editor.edit(batch)
    assert not caplog.records
    _, slow, batch = bound(facts=facts, **options | {"lr": 1e-5})
    slow.edit(batch)
    assert "LocFTBF ends with 0 of 3 answers learnt" in caplog.text
    assert "raise `lr` (1e-05) or `steps` (60)" in caplog.text
    caplog.clear()
    # One after the other: those that were learnt first are forgotten.
    _, depth, batch = bound(**options | {"order": "depth", "batch_size": 1, "steps": 20})
    depth.edit(batch)
    assert "of 12 answers learnt" in caplog.text
