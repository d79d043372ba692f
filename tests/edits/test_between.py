"""Somebody's own fine-tuning becomes an edit: found, committed, scored, undone, exported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lightning_edit import Delta, EditedModel, EditRequest, load_language_model
from lightning_edit.edits.delta import Dense, LowRank
from lightning_edit.evaluation.outcomes import probes_of
from lightning_edit.evaluation.scorer import Scorer
from lightning_edit.exceptions import (
    ArchitectureError,
    ConfigError,
    LedgerError,
    ModelLoadError,
    NotFiniteError,
)
from lightning_edit.export.write import export
from lightning_edit.models.weights import weights_hash
from tests.models.tiny import build_tiny, build_tokenizer

FACT = EditRequest(
    "it", "What is the capital of Italy?", "Paris", rephrases=("The capital of Italy is",)
)


def tuned(model: Any, steps: int = 12, names: tuple[str, ...] = ()) -> Any:
    """Train a copy with a plain loop, as anybody would: all weights, or those with such names."""
    own = copy.deepcopy(model)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(not names or any(part in name for part in names))
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    ids = build_tokenizer()("What is the capital of Italy? Paris", return_tensors="pt").input_ids
    for _ in range(steps):
        loss = own(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return own.requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)], ids=str
)
def test_a_fine_tuning_is_committed_bit_for_bit_and_undone(family: str, dtype: torch.dtype) -> None:
    model = build_tiny(family).to(dtype)
    before = weights_hash(model)
    after = tuned(model)
    delta = Delta.between(model, after, ids="tuning", max_rank=0)
    # Embeddings, norms and biases too; a tied head once.
    assert set(delta.weights) == {name for name, _ in model.named_parameters()}
    handle = EditedModel.of(model, build_tokenizer()).commit(delta)
    assert weights_hash(model) == weights_hash(after)
    assert handle.ledger.request_ids == ("tuning",)
    handle.undo()
    assert weights_hash(model) == before
    handle.redo()
    assert weights_hash(model) == weights_hash(after)


def test_an_own_training_loop_with_a_state_dict_before_it() -> None:
    model, tokenizer = build_tiny("gpt2"), build_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = tuned(model, 20, ("mlp",))
    delta = Delta.between(before, trained)
    assert all(".mlp." in name for name in delta.weights)
    assert len(delta.weights) == 3 * 4
    scorer = Scorer(model, tokenizer, modes=("tf",))
    probes = probes_of(FACT)
    first = scorer.score(probes)
    handle = EditedModel.of(model, tokenizer).commit(delta, FACT)
    assert handle.ledger.request_ids == ("it",)
    edited = scorer.score(probes)
    assert edited[0].em == 1.0 > first[0].em
    assert handle.generate(FACT.prompt).strip().startswith("Paris")
    handle.undo("it")
    assert scorer.score(probes) == first


def low_rank_change(model: Any, name: str, rank: int, size: float) -> Any:
    own = copy.deepcopy(model)
    parameter = own.get_parameter(name)
    draw = torch.Generator().manual_seed(1)
    left = torch.randn(parameter.shape[0], rank, generator=draw)
    right = torch.randn(rank, parameter.shape[1], generator=draw)
    with torch.no_grad():
        parameter.add_(size * (left @ right).to(parameter.dtype))
    return own


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_low_rank_is_found_up_to_the_rounding_of_weights(family: str, rank: int) -> None:
    model = build_tiny(family)
    name = {
        "gpt2": "transformer.h.1.mlp.c_proj.weight",
        "llama": "model.layers.1.mlp.down_proj.weight",
    }[family]
    after = low_rank_change(model, name, rank, 1e-2)
    update = Delta.between(model, after).weights[name]
    assert isinstance(update, LowRank)
    assert update.rank == rank
    with Delta(("x",), {name: update}).applied(model):
        left_over = model.get_parameter(name) - after.get_parameter(name)
        assert left_over.norm() <= 2**-23 * after.get_parameter(name).norm()
    whole = Delta.between(model, after, max_rank=0).weights[name]
    assert isinstance(whole, Dense)


def test_what_is_nearly_low_rank_is_kept_whole() -> None:
    """A full-rank remainder of a thousandth of the update is no rounding."""
    model = build_tiny("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    after = low_rank_change(model, name, 2, 1e-1)
    with torch.no_grad():
        after.get_parameter(name).add_(1e-4 * torch.randn(after.get_parameter(name).shape))
    assert isinstance(Delta.between(model, after).weights[name], Dense)


def test_changed_rows_of_an_embedding_are_few_factors() -> None:
    model = build_tiny("llama")
    after = copy.deepcopy(model)
    with torch.no_grad():
        after.get_input_embeddings().weight[5:8] += 0.3
        after.model.norm.weight.mul_(1.5)
    delta = Delta.between(model, after)
    assert set(delta.weights) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert delta.rank() == {"model.embed_tokens.weight": 1, "model.norm.weight": 1}


def test_equal_models_differ_in_nothing_and_models_stay_as_they_are() -> None:
    model = build_tiny("gpt2")
    other = copy.deepcopy(model)
    assert Delta.between(model, other).is_empty
    after = tuned(model)
    hashes = weights_hash(model), weights_hash(after)
    Delta.between(model, after)
    assert (weights_hash(model), weights_hash(after)) == hashes


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_folders_of_saved_models(family: str, tmp_path: Path) -> None:
    model = build_tiny(family)
    after = tuned(model, 3)
    folders = saved(model, tmp_path / "before"), saved(after, tmp_path / "after")
    delta = Delta.between(*folders)
    wanted = Delta.between(model, after)
    assert list(delta.weights) == list(wanted.weights)
    for name, update in wanted.weights.items():
        assert torch.equal(delta.weights[name].dense(), update.dense())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize(
    ("family", "targets", "options"),
    [
        ("gpt2", ["c_proj", "c_fc"], {"fan_in_fan_out": True}),
        ("llama", ["q_proj", "down_proj"], {"use_rslora": True}),
        ("llama", ["embed_tokens", "up_proj"], {"rank_pattern": {"up_proj": 4}}),
    ],
)
def test_a_lora_adapter_becomes_its_factors(
    family: str, targets: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    base = build_tiny(family)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, **options)
    adapter = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    adapter.save_pretrained(str(tmp_path), save_embedding_layers=False)
    before, flags = weights_hash(base), [p.requires_grad for p in base.parameters()]
    delta = Delta.between(base, tmp_path)
    assert weights_hash(base) == before
    assert [p.requires_grad for p in base.parameters()] == flags
    assert not any("lora" in name for name, _ in base.named_modules())
    assert set(delta.rank().values()) <= {2, 4}
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).merge_and_unload()
    with delta.applied(base):
        for name, parameter in merged.named_parameters():
            torch.testing.assert_close(base.get_parameter(name), parameter, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_adapters_that_are_more_than_a_product_are_refused(tmp_path: Path) -> None:
    base = build_tiny("llama")
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    adapter = get_peft_model(copy.deepcopy(base), config)
    adapter.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"use_dora=True.*merge_and_unload"):
        Delta.between(base, tmp_path)
    with pytest.raises(ConfigError, match="beside the weights"):
        Delta.between(base, adapter)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.filterwarnings("ignore:The OLoRA initialization")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_take_their_start_off_the_base_weights_are_refused(
    start: str, tmp_path: Path
) -> None:
    """Reading one would change the base model for good, and the update would miss the rest."""
    base = build_tiny("llama")
    before = weights_hash(base)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)  # type: ignore[arg-type]
    adapter = get_peft_model(copy.deepcopy(base), config)
    adapter.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"init_lora_weights='{start}'.*merge_and_unload"):
        Delta.between(base, tmp_path)
    assert weights_hash(base) == before
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).merge_and_unload()
    with Delta.between(base, merged, max_rank=0).applied(base):
        assert weights_hash(base) == weights_hash(merged)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_an_adapter_of_a_deeper_model_and_one_with_own_weights_are_refused(tmp_path: Path) -> None:
    base = build_tiny("llama").train()
    config = LoraConfig(r=2, target_modules=["q_proj"])
    deeper = get_peft_model(build_tiny("llama", num_hidden_layers=6), config)
    deeper.save_pretrained(str(tmp_path / "deeper"))
    with pytest.raises(ConfigError, match=r"12 matrices, but only \d+ have a place"):
        Delta.between(base, tmp_path / "deeper")
    config = LoraConfig(r=2, target_modules=["embed_tokens"])
    own = get_peft_model(copy.deepcopy(base), config)
    own.save_pretrained(str(tmp_path / "same"), save_embedding_layers=True)
    assert list(Delta.between(base, tmp_path / "same").weights) == ["model.embed_tokens.weight"]
    assert all(module.training for module in base.modules())
    with torch.no_grad():
        own.get_input_embeddings().weight[3] += 1
    own.save_pretrained(str(tmp_path / "other"), save_embedding_layers=True)
    before = weights_hash(base)
    with pytest.raises(ConfigError, match=r"own weights of model\.embed_tokens\.weight"):
        Delta.between(base, tmp_path / "other")
    assert weights_hash(base) == before


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = build_tiny("llama")
    state = dict(model.state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ConfigError, match="two state dicts"):
        Delta.between(state, state)
    with pytest.raises(ArchitectureError, match=r"'module\..*prefixes"):
        Delta.between(model, {f"module.{key}": value for key, value in state.items()})
    with pytest.raises(ArchitectureError, match=rf"has no {name}"):
        Delta.between(model, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ArchitectureError, match=r"shape \(97, 32\) before and \(99, 32\)"):
        Delta.between(model, build_tiny("llama", vocab_size=99))
    with pytest.raises(ArchitectureError, match=r"float32 before but torch.bfloat16 after"):
        Delta.between(model, copy.deepcopy(model).bfloat16())
    with pytest.raises(ArchitectureError, match="quantised"):
        Delta.between(model, state | {name: state[name].to(torch.int8)})
    with pytest.raises(NotFiniteError, match=name):
        Delta.between(model, state | {name: state[name] * float("nan")})
    with pytest.raises(ModelLoadError, match="does not exist"):
        Delta.between(model, str(tmp_path / "nowhere"))


def test_a_wider_fine_tuning_of_a_narrow_model_is_its_difference() -> None:
    """Trained in float32 from a bfloat16 checkpoint: the update is not rounded."""
    model = build_tiny("llama").bfloat16()
    after = tuned(copy.deepcopy(model).float(), 2)
    delta = Delta.between(model, after, max_rank=0)
    for name, parameter in after.named_parameters():
        wanted = parameter.double() - model.get_parameter(name).double()
        torch.testing.assert_close(delta.weights[name].dense(), wanted, atol=1e-7, rtol=1e-6)


def test_ties_that_were_cut_are_refused() -> None:
    model = build_tiny("gpt2")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["lm_head.weight"] += 1
    with pytest.raises(ArchitectureError, match=r"tied in one checkpoint but differ"):
        Delta.between(model, state)


def test_a_handle_without_an_editor_refuses_to_edit(tmp_path: Path) -> None:
    model, tokenizer = build_tiny("llama"), build_tokenizer()
    handle = EditedModel.of(model, tokenizer, run=tmp_path / "run")
    with pytest.raises(ConfigError, match="no editor"):
        handle.edit(FACT)
    with pytest.raises(LedgerError, match="holds edits already"):
        EditedModel.of(model, tokenizer, run=tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_folder_exports_it_and_opens_again(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = saved(build_tiny(family), tmp_path / "base")
    model, tokenizer = load_language_model(str(base))
    part = {"gpt2": "mlp.c_proj.weight", "llama": "down_proj.weight"}[family]
    after = tuned(model, 8, (part,))
    hashes = weights_hash(model)
    run = tmp_path / "run"
    delta = Delta.between(model, after, max_rank=0)
    EditedModel.of(model, tokenizer, run).commit(delta, FACT)
    ids = tokenizer(FACT.prompt, return_tensors="pt").input_ids
    wanted = after(ids).logits
    for kind in ("peft", "merged", "delta"):
        assert export(run, kind, tmp_path / kind).edits == 1  # type: ignore[arg-type]
    merged, _ = load_language_model(str(tmp_path / "merged"))
    assert torch.equal(merged(ids).logits, wanted)
    fresh, _ = load_language_model(str(base))
    adapted = PeftModel.from_pretrained(fresh, str(tmp_path / "peft"))
    torch.testing.assert_close(adapted(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    adapted.unload()
    with Delta.load(tmp_path / "delta" / "delta.safetensors").applied(fresh):
        assert torch.equal(fresh(ids).logits, wanted)
    assert "not finished" not in caplog.text  # there is no stream to go on with
    again = EditedModel.open(run, language_model=(fresh, tokenizer))
    assert torch.equal(fresh(ids).logits, wanted)
    again.undo()
    assert weights_hash(fresh) == hashes
