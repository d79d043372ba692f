"""Small networks of an editor that routes: built from a config, from a model, or from a folder.

Nothing is downloaded, no code of a folder is run, and only safetensors are read.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.distilbert import DistilBertConfig
from transformers.models.t5 import T5Config

from lightning_edit.exceptions import ConfigError, ModelLoadError
from lightning_edit.models.loading import load_language_model, load_tokenizer, locate

ScopeKind = Literal["embedding", "cross-attention"]
NetworkKind = Literal["embedding", "cross-attention", "language-model"]

_AUTO: Mapping[NetworkKind, Any] = {
    "embedding": AutoModel,
    "cross-attention": AutoModelForSequenceClassification,
    "language-model": AutoModelForCausalLM,
}
#: Names of depths in configs of two stacks.
_DEPTHS = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
#: Names of dropout rates in configs; the method trains without dropout.
_DROPOUTS = (
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "classifier_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
#: Lists in configs with one entry a block.
_PER_BLOCK = ("layer_types", "attention_layers", "mlp_layer_types")
#: Special tokens of a tokenizer that are stored with it.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_ENCODER_POSITIONS = 512


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def trainable(network: Any) -> Any:
    """Return a network in float32 with all parameters trainable, and without dropout.

    Args:
        network: The network; changed in place. It stays in eval mode, in training too.
    """
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.float().requires_grad_(True).eval()


def build_encoder(
    kind: ScopeKind,
    model: Any,
    hidden: int,
    layers: int,
    heads: int,
    seed: int,
    from_model: bool,
) -> PreTrainedModel:
    """Build a small bidirectional encoder (DistilBERT's architecture) for a scope classifier.

    Args:
        kind: ``embedding``: hidden states; ``cross-attention``: with two outputs for a pair.
        model: The language model whose tokenizer it reads with.
        hidden: Width; with ``from_model`` that of the model's embeddings.
        layers: Blocks.
        heads: Attention heads.
        seed: Seed of the random weights.
        from_model: Start from the model's own token embeddings.

    Raises:
        ConfigError: If the width cannot be cut into heads.
    """
    table = model.get_input_embeddings().weight.detach()
    width = table.shape[1] if from_model else hidden
    _require_heads(width, heads, "classifier_heads")
    config = DistilBertConfig(
        vocab_size=table.shape[0],
        max_position_embeddings=_ENCODER_POSITIONS,
        n_layers=layers,
        n_heads=heads,
        dim=width,
        hidden_dim=4 * width,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=None,
    )
    with _seeded(seed):
        network = _AUTO[kind].from_config(config, trust_remote_code=False)
    if from_model:
        with torch.no_grad():
            network.get_input_embeddings().weight.copy_(table)
    found: PreTrainedModel = trainable(network)
    return found


def build_language_model(model: Any, hidden: int, layers: int, heads: int, seed: int) -> Any:
    """Build a small language model with random weights: of Llama's or, with two stacks, T5's kind.

    Args:
        model: The base model, whose vocabulary and number of stacks it has.
        hidden: Width.
        layers: Blocks.
        heads: Attention heads.
        seed: Seed of the random weights.

    Raises:
        ConfigError: If the width cannot be cut into heads.
    """
    _require_heads(hidden, heads, "counterfactual_heads")
    if model.config.is_encoder_decoder:
        return _build_two_stacks(model, hidden, layers, heads, seed)
    base = model.config.get_text_config(decoder=True)
    positions = getattr(base, "max_position_embeddings", None)
    config = LlamaConfig(
        vocab_size=model.get_input_embeddings().weight.shape[0],
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions or 1024,
        bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id,
        pad_token_id=None,
    )
    with _seeded(seed):
        return trainable(_AUTO["language-model"].from_config(config, trust_remote_code=False))


def _build_two_stacks(model: Any, hidden: int, layers: int, heads: int, seed: int) -> Any:
    base = model.config
    special = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    tokens: dict[str, Any] = {name: getattr(base, name) for name in special}
    config = T5Config(
        vocab_size=model.get_input_embeddings().weight.shape[0],
        d_model=hidden,
        d_ff=4 * hidden,
        d_kv=hidden // heads,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        **tokens,
    )
    with _seeded(seed):
        found = _auto("language-model", config).from_config(config, trust_remote_code=False)
    return trainable(found)


def first_blocks(model: Any, layers: int) -> Any:
    """Copy a language model with its first blocks only: embeddings, blocks, last norm and head.

    Args:
        model: A Hugging Face model.
        layers: Blocks that are kept, of two stacks in each; more than there are: all.

    Raises:
        ConfigError: If its config does not say how many blocks to build.
    """
    config = copy.deepcopy(model.config)
    two = bool(config.is_encoder_decoder)
    kept = min(layers, int(config.num_hidden_layers))
    for name in _DEPTHS if two else ():
        if isinstance(depth := getattr(config, name, None), int):
            setattr(config, name, min(layers, depth))
    for name in _PER_BLOCK:
        if isinstance(listed := getattr(config, name, None), list):
            setattr(config, name, listed[:kept])
    if isinstance(nested := getattr(config, "attention_types", None), list):
        config.attention_types = [[_flat(nested)[:kept], 1]]
    if not two:  # there it is another name of one stack's depth
        config.num_hidden_layers = kept
    try:
        small = _auto("language-model", config).from_config(config, trust_remote_code=False)
        own = model.state_dict()
        missing, _ = small.load_state_dict(
            {name: own[name] for name in small.state_dict() if name in own}, strict=False
        )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _no_first_blocks(model, kept, str(error)) from error
    if missing:
        raise _no_first_blocks(model, kept, f"no weights for {missing[0]}")
    return trainable(small)


def _flat(nested: Any) -> list[Any]:
    return [one for kinds, times in nested for one in kinds * times]


def _no_first_blocks(model: Any, layers: int, reason: str) -> ConfigError:
    return ConfigError(
        f"expected a model whose first {layers} blocks make a smaller model, but "
        f"{type(model).__name__} cannot be shortened ({reason}); give counterfactual: scratch, or "
        "the folder of a small language model"
    )


def load_encoder(kind: ScopeKind, folder: str) -> tuple[PreTrainedModel, Any]:
    """Load a bidirectional encoder, such as DistilBERT, and its tokenizer from a local folder.

    Args:
        kind: See :func:`build_encoder`; a missing head of the pair classifier begins at random.
        folder: Folder with config.json, model.safetensors and tokenizer files.

    Raises:
        ModelLoadError: If the folder cannot be read, or weights of the encoder are missing.
    """
    source = require_folder(folder, "classifier")
    options: dict[str, Any] = {"num_labels": 2} if kind == "cross-attention" else {}
    try:
        network, loading = _AUTO[kind].from_pretrained(
            source,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(
            f"could not load an encoder from {folder} ({str(error).partition(chr(10))[0]}); give "
            "the folder of an encoder such as DistilBERT, with config.json and model.safetensors"
        ) from error
    parts = ("pooler", "classifier")
    lacking = [name for name in loading["missing_keys"] if not any(p in name for p in parts)]
    if lacking:
        raise ModelLoadError(
            f"{folder} lacks {len(lacking)} weights of {type(network).__name__}, first "
            f"{sorted(lacking)[0]}; give the folder of a complete encoder"
        )
    return trainable(network), load_tokenizer(source)


def load_counterfactual(folder: str) -> tuple[Any, Any]:
    """Load a language model, of one stack or two, and its tokenizer from a local folder.

    Args:
        folder: Folder with config.json, model.safetensors and tokenizer files.

    Raises:
        ModelLoadError: If it cannot be read.
    """
    model, tokenizer = load_language_model(require_folder(folder, "counterfactual"))
    return trainable(model), tokenizer


def require_folder(folder: str, argument: str) -> str:
    """Return the path of a local model's folder.

    Args:
        folder: The folder.
        argument: Name of the argument, for the error message.

    Raises:
        ModelLoadError: If there is no such folder, or it holds no saved model.
    """
    if not Path(folder).expanduser().is_dir():
        raise ModelLoadError(
            f"expected `base`, `scratch` or the folder of a saved model as {argument}, but there "
            f"is no folder {folder!r}; download it first, nothing is fetched here"
        )
    return locate(str(Path(folder).expanduser().absolute()))


def describe_network(network: PreTrainedModel) -> dict[str, Any]:
    """Return a network's config as plain values, from which :func:`rebuild_network` builds it."""
    described: dict[str, Any] = json.loads(network.config.to_json_string(use_diff=False))
    described.pop("_name_or_path", None)
    return described


def rebuild_network(kind: NetworkKind, described: Mapping[str, Any]) -> PreTrainedModel:
    """Build a network, with weights still to be loaded, from :func:`describe_network`.

    Args:
        kind: What it is.
        described: Its config.
    """
    values = {name: value for name, value in described.items() if name != "model_type"}
    config: PretrainedConfig = AutoConfig.for_model(described["model_type"], **values)
    with _seeded(0):
        network: PreTrainedModel = trainable(
            _auto(kind, config).from_config(config, trust_remote_code=False)
        )
    return network


def _auto(kind: NetworkKind, config: Any) -> Any:
    """Return the class of transformers that builds a network of a kind from a config."""
    two = kind == "language-model" and config.is_encoder_decoder
    return AutoModelForSeq2SeqLM if two else _AUTO[kind]


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return a fast tokenizer as plain values, for :func:`rebuild_tokenizer`."""
    special = {name: str(one) for name in _SPECIAL if (one := getattr(tokenizer, name, None))}
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "special": special}


def rebuild_tokenizer(described: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Build a tokenizer from the output of :func:`describe_tokenizer`."""
    core = Tokenizer.from_str(described["tokenizer"])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=core, clean_up_tokenization_spaces=False, **described["special"]
    )


def _require_heads(width: int, heads: int, argument: str) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(
            f"expected {argument} that divide the width {width}, got {heads}; give a divisor"
        )
