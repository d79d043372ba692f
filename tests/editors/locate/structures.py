"""Tiny models of every structure that stands between an MLP's output and the hidden state.

Their norms have random weights far from 1: fresh ones, which are 1, would hide a norm that an edit
does not take into account.
"""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests.models.tiny import HEADS, VOCAB

HIDDEN, INNER, LAYERS = 32, 64, 4
_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_NEOX = {key: _LLAMA[key] for key in list(_LLAMA)[:4]} | {"max_position_embeddings": 64}
_GPT: dict[str, Any] = {
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": 64,
}

#: Plain: the MLP's output is added to the hidden state. In BLOOM and MPT the MLP module itself adds
#: the two; GPT-J, GPT-NeoX, Phi, Falcon and Cohere run attention and MLP in parallel.
PLAIN: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "llama": _LLAMA,
    "gptj": _GPT | {"rotary_dim": 8},
    "gpt_neox": _NEOX,
    "phi": _NEOX,
    "phi3": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "falcon": _NEOX | {"new_decoder_architecture": False},
    "cohere": {k: v for k, v in _LLAMA.items() if k != "head_dim"} | {"logit_scale": 0.5},
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    "mpt": {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "expansion_ratio": 2},
    "bitnet": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "nemotron": _LLAMA,
}
#: The MLP's output is multiplied by a constant before it is added.
SCALED: dict[str, dict[str, Any]] = {
    "granite": {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    | {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 4.0},
    "minicpm3": {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    | {
        "num_key_value_heads": HEADS,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}
#: A norm stands between the MLP and the hidden state, or norms their sum.
NORMED: dict[str, dict[str, Any]] = {
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo2": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "glm4": _LLAMA,
    "exaone4": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "hyperclovax": {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    | {"residual_multiplier": 0.3, "use_post_norm": True},
    "opt": {
        "hidden_size": HIDDEN,
        "ffn_dim": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "word_embed_proj_dim": HIDDEN,
        "max_position_embeddings": 64,
        "do_layer_norm_before": False,
    },
}
CONFIGS = PLAIN | SCALED | NORMED


@cache
def build(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """Build one of the models; tests that change it put it back."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    arguments = {"vocab_size": VOCAB} | ids | CONFIGS[model_type]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **arguments)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for weight in module.parameters(recurse=False):
                    weight.mul_(torch.empty(()).uniform_(0.3, 3.0))
                    weight.mul_(torch.empty_like(weight).uniform_(0.5, 2.0))
    return model.to(dtype).requires_grad_(False)
