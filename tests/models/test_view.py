"""Every family's parts are found, and the parts do what their names say."""

from functools import cache

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import capture
from lightning_edit.models.view import BlockView, ModelView, depth_fraction, resolve
from tests.models.tiny import CONFIGS, HIDDEN, INNER, LAYERS, TINY, batch_of, build_tiny

#: blocks, MLP down, MLP module, attention out, final norm: written down from the printed models.
EXPECTED = {
    "gpt2": ("transformer.h", "mlp.c_proj", "mlp", "attn.c_proj", "transformer.ln_f"),
    "gptj": ("transformer.h", "mlp.fc_out", "mlp", "attn.out_proj", "transformer.ln_f"),
    "gpt_neo": (
        "transformer.h",
        "mlp.c_proj",
        "mlp",
        "attn.attention.out_proj",
        "transformer.ln_f",
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        "mlp.dense_4h_to_h",
        "mlp",
        "attention.dense",
        "gpt_neox.final_layer_norm",
    ),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"),
        ("model.layers", "mlp.down_proj", "mlp", "self_attn.o_proj", "model.norm"),
    ),
    "phi": ("model.layers", "mlp.fc2", "mlp", "self_attn.dense", "model.final_layernorm"),
    "opt": (
        "model.decoder.layers",
        "fc2",
        "fc2",
        "self_attn.out_proj",
        "model.decoder.final_layer_norm",
    ),
    "t5": (
        "decoder.block",
        "layer.2.DenseReluDense.wo",
        "layer.2.DenseReluDense",
        "layer.0.SelfAttention.o",
        "decoder.final_layer_norm",
    ),
    "bart": ("model.decoder.layers", "fc2", "fc2", "self_attn.out_proj", None),
}


@cache
def seen(family: str) -> ModelView:
    return resolve(TINY[family]())


def test_every_family_has_an_expectation() -> None:
    assert EXPECTED.keys() == CONFIGS.keys() == TINY.keys()


@pytest.mark.parametrize("family", CONFIGS)
def test_names(family: str) -> None:
    view = seen(family)
    blocks, down, mlp, attention, norm = EXPECTED[family]
    assert view.num_blocks == (LAYERS - 1 if view.is_encoder_decoder else LAYERS)
    for index, block in enumerate(view.blocks):
        assert block.name == f"{blocks}.{index}"
        assert block.mlp_down == f"{block.name}.{down}" == view.down_projection(index)
        assert block.mlp == f"{block.name}.{mlp}"
        assert block.attention_out == f"{block.name}.{attention}"
        assert view.model.get_submodule(block.name) is block.module
        assert view.parameter(index) in dict(view.model.named_parameters())
    assert (view.hidden_size, view.intermediate_size) == (HIDDEN, INNER)
    assert (None if view.final_norm is None else view.name_of(view.final_norm)) == norm
    # transformers 5.0 still calls the head of GPT-NeoX by its old name.
    head = "embed_out" if hasattr(view.model, "embed_out") else "lm_head"
    assert view.name_of(view.head) == head
    assert isinstance(view.embeddings, nn.Embedding)


def test_gates_are_input_projections() -> None:
    assert [up.rpartition(".")[2] for up in seen("llama").blocks[0].mlp_up] == [
        "gate_proj",
        "up_proj",
    ]
    assert [up.rpartition(".")[2] for up in seen("phi3").blocks[0].mlp_up] == ["gate_up_proj"]
    gated = resolve(build_tiny("t5", feed_forward_proj="gated-gelu"))
    assert [up.rpartition(".")[2] for up in gated.blocks[0].mlp_up] == ["wi_0", "wi_1"]


@pytest.mark.parametrize(
    ("family", "down", "cross"),
    [
        ("t5", "encoder.block.2.layer.1.DenseReluDense.wo", "layer.1.EncDecAttention.o"),
        ("bart", "model.encoder.layers.2.fc2", "encoder_attn.out_proj"),
    ],
)
def test_encoder_decoder(family: str, down: str, cross: str) -> None:
    view = seen(family)
    assert view.is_encoder_decoder
    assert len(view.encoder_blocks) == LAYERS
    assert view.encoder_blocks[2].mlp_down == down
    assert view.encoder_blocks[2].cross_attention_out is None
    assert view.blocks[1].cross_attention_out == f"{view.blocks[1].name}.{cross}"


def outputs(view: ModelView, block: BlockView) -> dict[str, torch.Tensor]:
    names = {block.mlp_down, block.mlp, block.attention_out}
    wanted = {name: "both" if name == block.mlp_down else "output" for name in names}
    with torch.no_grad(), capture(view.model, wanted) as found:
        view.model(**batch_of(view.model), use_cache=False)
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_the_mlp_returns_what_its_down_projection_returns(family: str) -> None:
    view = seen(family)
    block = view.blocks[-1]
    found = outputs(view, block)
    down = found[f"{block.mlp_down}@output"]
    assert found[f"{block.mlp_down}@input"].shape == (*down.shape[:2], INNER)
    assert down.shape == (2, 7, HIDDEN) == found[block.attention_out].shape
    if block.mlp != block.mlp_down:
        torch.testing.assert_close(found[block.mlp], down, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "phi3", "t5"])
def test_square_mlps(family: str) -> None:
    """Shapes alone cannot tell the layers apart when the MLP is as wide as the hidden state."""
    width = {"gpt2": "n_inner", "opt": "ffn_dim", "t5": "d_ff"}.get(family, "intermediate_size")
    view = resolve(build_tiny(family, **{width: HIDDEN}))
    assert view.blocks[1].mlp_down == f"{view.blocks[1].name}.{EXPECTED[family][1]}"
    assert view.blocks[1].attention_out == f"{view.blocks[1].name}.{EXPECTED[family][3]}"


def test_meta_device_is_enough() -> None:
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert resolve(model).parameter(2) == "model.layers.2.mlp.down_proj.weight"


def test_layers_beyond_the_model_are_refused() -> None:
    for layer in (-1, LAYERS):
        with pytest.raises(ArchitectureError, match=r"layers 0 to 2; choose one of them"):
            seen("gpt2").parameter(layer)


def test_depth_fraction() -> None:
    assert depth_fraction(seen("gpt2"), [0.0, 0.4, 0.5, 1.0]) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        depth_fraction(seen("gpt2"), [1.5])


def unsupported(model_type: str, **arguments: object) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, vocab_size=97, **arguments)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


MOE = CONFIGS["llama"] | {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            lambda: unsupported("mamba", hidden_size=32, num_hidden_layers=2, state_size=4),
            r"looked for an attention part.*found the linear layers mixer\.in_proj 32→128",
        ),
        (lambda: unsupported("mixtral", **MOE), "mixture of experts, .*use a dense model"),
        (
            lambda: unsupported(
                "qwen2_moe",
                **CONFIGS["llama"],
                num_experts=4,
                num_experts_per_tok=2,
                shared_expert_intermediate_size=48,
                moe_intermediate_size=24,
            ),
            "mixture of experts",
        ),
        (
            lambda: unsupported("jamba", **CONFIGS["llama"]),
            r"layers\.0 \(JambaMambaDecoderLayer\): looked for an attention part",
        ),
        (
            lambda: ResNetForImageClassification(ResNetConfig(hidden_sizes=[8], depths=[1])),
            r"ResNetForImageClassification lacks one of: config\.hidden_size \(None\)",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
            "Sequential is not a Hugging Face language model",
        ),
        (
            lambda: GPT2Model(AutoConfig.for_model("gpt2", **CONFIGS["gpt2"])),
            r"output head \(none\).*AutoModelForCausalLM",
        ),
    ],
    ids=["mamba", "mixtral", "shared expert", "hybrid", "vision", "cnn", "headless"],
)
def test_unknown_architectures_say_what_was_looked_for(model, text: str) -> None:  # noqa: ANN001
    with pytest.raises(ArchitectureError, match=f"(?s){text}"):
        resolve(model())
