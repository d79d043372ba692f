"""The knowledge of the embedded model in other architectures, to try settings on.

A setting that suits the embedded Llama may do nothing where a norm follows the MLP (Gemma 3), or
where attention and MLP read the same state (GPT-NeoX). ``lightning-edit fit --config
configs/atlas/other_family.yaml`` trains such a model on the same sentences. It begins with the
embedded model's weights as far as they fit, so some minutes are enough.
"""

from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from lightning_edit.atlas.train import AtlasLanguageModel
from lightning_edit.models.loading import load_language_model

Family = Literal["gemma3", "gpt_neox"]


class AtlasFamilyModel(AtlasLanguageModel):
    """Small language model of a given family, trained on the sentences of the atlas.

    Args:
        family: ``gemma3``: gains of norms are counted from 1, one of them behind attention and one
            behind the MLP, queries and keys are normalised, inputs scaled. ``gpt_neox``: attention
            and MLP side by side, LayerNorm, biases.
        learning_rate: Peak learning rate of AdamW.
        warmup: Steps of linear warm-up.
        decay_steps: Step at which the cosine decay ends.
        save_every: Steps between evaluations; the model is saved after each.
        save_to: Output folder of the model and its tokenizer.
    """

    def __init__(
        self,
        family: Family = "gemma3",
        learning_rate: float = 1.5e-3,
        warmup: int = 50,
        decay_steps: int = 600,
        save_every: int = 200,
        save_to: str = "runs/atlas-gemma3/model",
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            warmup=warmup,
            decay_steps=decay_steps,
            save_every=save_every,
            save_to=save_to,
        )
        self.family: Family = family

    def configure_model(self) -> None:
        """Build the model with what fits of the embedded model's weights.

        Raises:
            ValueError: If the data have another vocabulary.
        """
        if not hasattr(self, "model"):
            llama, tokenizer = load_language_model("atlas")
            if self.tokenizer.get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    "another family begins with the embedded model's weights, so its data need the "
                    f"embedded model's vocabulary of {len(tokenizer)} tokens, got another one of "
                    f"{len(self.tokenizer)}; leave vocab_size and two_stacks as they are"
                )
            build = {"gemma3": gemma3_of, "gpt_neox": gpt_neox_of}[self.family]
            self.model = build(llama).requires_grad_(True).train()


@torch.no_grad()
def gemma3_of(llama: PreTrainedModel) -> Gemma3ForCausalLM:
    """Return a Gemma 3 with the weights of the embedded Llama; its other norms are new.

    Args:
        llama: The embedded model.
    """
    config = llama.config
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_sizes(llama),
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            query_pre_attn_scalar=config.head_dim,
            hidden_activation=config.hidden_act,
            layer_types=["full_attention"] * config.num_hidden_layers,
        )
    )
    values = {name: value.clone() for name, value in llama.state_dict().items()}
    values["model.embed_tokens.weight"] /= config.hidden_size**0.5
    # Llama's second norm is the one before the MLP; gains of a Gemma are counted from 1.
    values["model.norm.weight"] -= 1
    for number in range(config.num_hidden_layers):
        norms = f"model.layers.{number}."
        before = values.pop(norms + "post_attention_layernorm.weight")
        values[norms + "input_layernorm.weight"] -= 1
        values[norms + "pre_feedforward_layernorm.weight"] = before - 1
    missing, unexpected = model.load_state_dict(values, strict=False)
    if unexpected or not all("norm" in name for name in missing):
        raise RuntimeError(f"the embedded model has other weights: {missing}, {unexpected}")
    inputs: nn.Embedding = model.get_submodule("model.embed_tokens")  # type: ignore[assignment]  # it is one
    inputs.padding_idx = None  # EOS, which is learnt
    return model


@torch.no_grad()
def gpt_neox_of(llama: PreTrainedModel) -> GPTNeoXForCausalLM:
    """Return a GPT-NeoX with the embeddings and the head of the embedded Llama.

    Args:
        llama: The embedded model.
    """
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**_sizes(llama), use_parallel_residual=True))
    inputs: nn.Embedding = model.get_submodule("gpt_neox.embed_in")  # type: ignore[assignment]  # it is one
    inputs.weight.copy_(llama.get_input_embeddings().get_parameter("weight"))
    inputs.padding_idx = None
    # Its name has changed between versions of transformers.
    head, own = (one.get_output_embeddings() for one in (model, llama))  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    head.get_parameter("weight").copy_(own.get_parameter("weight"))
    return model


def _sizes(llama: PreTrainedModel) -> dict[str, Any]:
    """Return what configurations of all families call by the same names."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "max_position_embeddings", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    return {name: getattr(llama.config, name) for name in names} | {"tie_word_embeddings": False}
