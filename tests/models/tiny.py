"""Tiny models of every supported family, built from their configs, and small tokenizers.

Other tests import :data:`TINY` and :func:`build_tokenizer`; nothing is downloaded.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HIDDEN, INNER, LAYERS, HEADS, VOCAB = 32, 48, 3, 4, 97

#: Sizes under the names of the Llama line of models.
_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_NEOX = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
# Twice the length of the others: editors put prompts in front of prompts.
_GPT = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 128}

#: Arguments of each family's config; the key is its ``model_type``.
CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 8},
    "gpt_neo": {
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "intermediate_size": INNER,
        "attention_types": [[["global", "local", "global"], 1]],
        "max_position_embeddings": 64,
    },
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": _NEOX,
    "phi3": {k: v for k, v in _LLAMA.items() if k != "head_dim"},
    "opt": {
        "hidden_size": HIDDEN,
        "ffn_dim": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "word_embed_proj_dim": HIDDEN,
        "max_position_embeddings": 64,
    },
    "t5": {
        "d_model": HIDDEN,
        "d_ff": INNER,
        "d_kv": 8,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS - 1,
        "num_heads": HEADS,
    },
    "bart": {
        "d_model": HIDDEN,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS - 1,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": INNER,
        "decoder_ffn_dim": INNER,
        "max_position_embeddings": 64,
    },
}

#: Further families, which only tests that name them are run on.
MORE: dict[str, dict[str, object]] = {
    "falcon": _NEOX | {"new_decoder_architecture": False, "alibi": False},
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    "mbart": CONFIGS["bart"],
    "pegasus": CONFIGS["bart"],
}


def build_tiny(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Build one tiny model with fixed random weights, float32, eval mode."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2}
    arguments = {"vocab_size": VOCAB} | ids | (CONFIGS | MORE)[model_type] | changes
    config = AutoConfig.for_model(model_type, **arguments)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        # Weights of 0.02 make all logits nearly equal; wider ones make a wrong position visible.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


#: A builder for every family, by ``model_type``.
TINY: dict[str, Callable[[], PreTrainedModel]] = {
    model_type: partial(build_tiny, model_type) for model_type in CONFIGS
}

CORPUS = (
    "The capital of France is Paris",
    "The mother tongue of Danielle Darrieux is French",
    "Marseille lies in France and Lyon lies in France too",
    "What is the capital of Italy? Rome",
    "The river Rhône flows through Lyon, Avignon and Arles",
)


def build_tokenizer(
    *,
    bos: bool = False,
    eos: bool = False,
    pad: bool = True,
    vocab_size: int = VOCAB,
    corpus: Sequence[str] = CORPUS,
) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer with offsets; most words become several tokens.

    Args:
        bos: Put ``<s>`` before every text, as Llama's tokenizers do.
        eos: Put ``</s>`` after every text, as T5's do.
        pad: Declare the padding token; without it a tokenizer is like GPT-2's.
        vocab_size: At least 260 for full byte coverage; below it rare bytes become ``<unk>``.
        corpus: Texts that its words are taken from.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if vocab_size >= 260 else [],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
                ),
            ]
        )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if pad:
        special["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def break_token(model: PreTrainedModel, token: int) -> None:
    """Make the hidden states of texts with a token NaN; the head and other texts are as before."""
    first = model.get_encoder() if model.config.is_encoder_decoder else model
    weight = first.get_input_embeddings().weight.detach().clone()
    weight[token] = float("nan")
    first.get_input_embeddings().weight = torch.nn.Parameter(weight)


def batch_of(model: PreTrainedModel, rows: int = 2, positions: int = 7) -> dict[str, torch.Tensor]:
    """Random token ids for one forward pass; ``positions`` are the decoder's."""
    generator = torch.Generator().manual_seed(1)
    batch = {"input_ids": torch.randint(4, VOCAB, (rows, positions), generator=generator)}
    if model.config.is_encoder_decoder:
        # Another length for the encoder, so that mixing the two sides up is noticed.
        decoder = torch.randint(4, VOCAB, (rows, positions), generator=generator)
        batch = {"input_ids": batch["input_ids"][:, :-2], "decoder_input_ids": decoder}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}
