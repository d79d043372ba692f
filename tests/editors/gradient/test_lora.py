"""LoRA as an editor: what it learns is the update, and nothing of peft stays in the model."""

import pytest
import torch

from lightning_edit.editors.gradient import lora
from lightning_edit.editors.gradient.lora import LoRAEdit
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.models.weights import weights_hash
from lightning_edit.types import EditRequest
from tests.models.tiny import TINY, build_tiny, build_tokenizer

REQUESTS = [
    EditRequest("a", "The capital of France is", "Rome"),
    EditRequest("b", "The mother tongue of Danielle Darrieux is", "Paris"),
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "phi3", "mbart", "pegasus"])
def test_the_update_lowers_the_loss_and_the_model_is_as_it_was(family: str) -> None:
    model = build_tiny(family)
    editor = LoRAEdit(steps=15, rank=2)
    editor.bind(model, build_tokenizer(eos=model.config.is_encoder_decoder))
    kinds = {name: type(module) for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes, before = set(vars(model)), weights_hash(model)
    batch = encode_batch(editor.tokenizer, REQUESTS)
    loss = editor._loss(batch.encoded).mean().item()
    delta = editor.edit(batch)
    assert kinds == {name: type(module) for name, module in model.named_modules()}
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert weights_hash(model) == before
    assert set(vars(model)) == attributes
    with delta.applied(model):
        edited = editor._loss(batch.encoded).mean().item()
    # One optimiser step lies between the last recorded loss and the adapters handed over.
    assert edited < delta.info["loss"][-1] + 0.05 < loss
    assert all(update.rank == 2 for update in delta.weights.values())


def test_dropout_follows_the_seed() -> None:
    model = TINY["llama"]()
    editor = LoRAEdit(steps=3, rank=2, dropout=0.3)
    editor.bind(model, build_tokenizer())
    state = torch.get_rng_state()
    found = [
        editor.edit(encode_batch(editor.tokenizer, REQUESTS, seed)).norm() for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_restored_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY["llama"]()
    editor = LoRAEdit(steps=3)
    editor.bind(model, build_tokenizer())
    names = set(dict(model.named_parameters()))

    def fail(encoded: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(editor, "_loss", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        editor.edit(encode_batch(editor.tokenizer, REQUESTS))
    assert set(dict(model.named_parameters())) == names
    assert not hasattr(model, "peft_config")


def test_unknown_targets_are_refused_at_once() -> None:
    named = "named nowhere; give `targets`, some of c_attn, c_proj, c_fc"
    with pytest.raises(ArchitectureError, match=named):
        LoRAEdit(targets=["nowhere"]).bind(TINY["gpt2"](), build_tokenizer())


def test_of_a_type_that_peft_does_not_list_queries_and_values_are_adapted() -> None:
    found = {
        name.rpartition(".")[2]
        for name in LoRAEdit().bind(build_tiny("mbart"), build_tokenizer()).adapted_modules()
    }
    assert found == {"q_proj", "v_proj"}
    assert lora._default_targets("new", ["query", "key", "value"]) == ["query", "value"]
    assert lora._default_targets("new", ["w1", "query_key_value"]) == ["query_key_value"]
    assert lora._default_targets("new", ["w1", "w2"]) == []
    # A pattern, not a list, in newer versions of peft; unknown to older ones.
    assert lora._default_targets("gemma4", ["q_proj", "v_proj", "o_proj"]) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_first_step_takes_its_share_of_the_loss(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "STEP_REACH", 1e-3)
    editor = LoRAEdit(steps=2, rank=2)
    editor.bind(TINY[family](), build_tokenizer(eos=True))
    delta = editor.edit(encode_batch(editor.tokenizer, REQUESTS))
    first, second = delta.info["loss"]
    assert (first - second) / first == pytest.approx(1e-3, rel=0.15)
    assert delta.info["auto"] == editor.chosen == {"lr": pytest.approx(editor.chosen["lr"])}


def test_a_given_rate_is_taken_as_it_is() -> None:
    editor = LoRAEdit(steps=2, rank=2, lr=1e-3)
    editor.bind(TINY["llama"](), build_tokenizer())
    assert "auto" not in editor.edit(encode_batch(editor.tokenizer, REQUESTS)).info
    assert editor.chosen == {}
    with pytest.raises(ValueError, match="lr auto or > 0"):
        LoRAEdit(lr=0.0)
