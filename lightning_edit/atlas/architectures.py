"""Architectures of the atlas language models: a Llama of one stack, a T5 of two."""

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)


def build_llama(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int,
    layers: int,
    intermediate_size: int,
    heads: int,
) -> PreTrainedModel:
    """Build an untrained Llama model with an untied head.

    Args:
        tokenizer: Its tokenizer, whose EOS is BOS and padding too.
        hidden_size: Width of the residual stream.
        layers: Number of transformer blocks.
        intermediate_size: Width of the MLP.
        heads: Attention heads.
    """
    end_id = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=False,
            bos_token_id=end_id,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
    )
    # BOS is also the padding token, and `nn.Embedding` gives padding no gradient.
    model.model.embed_tokens.padding_idx = None
    return model


def build_t5(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int,
    layers: int,
    decoder_layers: int,
    intermediate_size: int,
    heads: int,
) -> PreTrainedModel:
    """Build an untrained T5 model (version 1.0) without dropout.

    ReLU feed-forward networks, relative position bias, and one embedding for encoder, decoder and
    head, whose input is scaled by ``hidden_size ** -0.5``.

    Args:
        tokenizer: Its tokenizer; the decoder starts with the padding token.
        hidden_size: Width of the residual streams.
        layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder.
        intermediate_size: Width of the feed-forward networks.
        heads: Attention heads.
    """
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=hidden_size,
            d_kv=hidden_size // heads,
            d_ff=intermediate_size,
            num_layers=layers,
            num_decoder_layers=decoder_layers,
            num_heads=heads,
            dropout_rate=0.0,
            feed_forward_proj="relu",
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]  # of every config
        )
    )
