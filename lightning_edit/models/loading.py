"""Loading of language models (frozen, unquantised) and fast tokenizers for editing.

A model's folder may hold Python code (``auto_map`` in ``config.json``), or name an attention kernel
of the hub. It is run only with ``trust_remote_code=True``; nothing ever asks on standard input.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_edit.exceptions import ModelLoadError

logger = logging.getLogger(__name__)

#: The default model, of one stack, that ships inside the package.
ATLAS = "atlas"
#: Folders of the packaged models in ``lightning_edit/atlas``, by name.
PACKAGED = {ATLAS: "model", "atlas-t5": "model_t5"}

#: Errors of reading a checkpoint: no file or network, another file format, different shapes, a
#: package that a trusted code needs.
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)

#: Weight dtypes in which a model can be edited; anything narrower is quantised.
DTYPES = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(name: str) -> torch.dtype:
    """Parse the name of a floating-point dtype.

    Raises:
        ModelLoadError: If it is none of :data:`DTYPES`.
    """
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _packaged() -> str:
    return ", ".join(f"`{name}`" for name in PACKAGED)


def locate(name_or_path: str) -> str:
    """Return the local folder of a model, or the name unchanged if it can only be a hub name.

    Args:
        name_or_path: A packaged model (:data:`PACKAGED`), a folder, or a hub name (``name`` or
            ``owner/name``).

    Raises:
        ModelLoadError: If it is a path without a saved model.
    """
    if name_or_path in PACKAGED:
        path = Path(__file__).parents[1] / "atlas" / PACKAGED[name_or_path]
    else:
        path = Path(name_or_path).expanduser()
        looks_like_path = path.is_absolute() or name_or_path.startswith((".", "~"))
        if not path.exists() and not looks_like_path and len(path.parts) <= 2:
            return name_or_path
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise ModelLoadError(
            f"{path} {found}; give the folder of a saved model (with config.json and "
            f"model.safetensors), a hub name such as gpt2, or a packaged model: {_packaged()}"
        )
    if (path / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{path} holds an adapter (adapter_config.json), whose layers are no plain matrices; "
            "merge it into its base model (`PeftModel.merge_and_unload()`, then `save_pretrained`) "
            "and give that folder"
        )
    if not (path / "config.json").is_file():
        raise ModelLoadError(
            f"{path} holds no config.json, so it is no saved model; "
            "give the folder that `model.save_pretrained(folder)` wrote"
        )
    return str(path)


def load_config(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Load a model's config without its weights.

    Args:
        name_or_path: As for :func:`load_language_model`.
        revision: As for :func:`load_language_model`.
        trust_remote_code: As for :func:`load_language_model`.

    Raises:
        ModelLoadError: If there is none, if the architecture is unknown to transformers, if it
            needs code that is not trusted, or if the weights are quantised.
    """
    source = locate(name_or_path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except _LOAD_ERRORS as error:
        raise _load_error("config", source, error) from error
    # transformers downloads and runs the kernel that a config names as `owner/name`.
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for attention in (str(getattr(part, "_attn_implementation", None) or "") for part in parts):
        if "/" in attention and not trust_remote_code:
            raise _untrusted_error(source, f"the attention kernel {attention!r}")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelLoadError(
            f"the weights of {name_or_path} are quantised and cannot be edited; give the "
            "unquantised model and choose dtype bfloat16 to save memory"
        )
    return config


def auto_class(config: PretrainedConfig) -> Any:
    """Return the transformers auto class that builds a model with a head from a config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def build_empty(
    name_or_path: str = ATLAS,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a model on the meta device from its config, without reading or allocating weights.

    Args:
        name_or_path: As for :func:`load_language_model`.
        dtype: As for :func:`load_language_model`.
        revision: As for :func:`load_language_model`.
        trust_remote_code: As for :func:`load_language_model`.

    Returns:
        The model, without data.

    Raises:
        ModelLoadError: If there is no config, or it is not that of a language model.
    """
    torch_dtype = parse_dtype(dtype)
    config = load_config(name_or_path, revision, trust_remote_code)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(
                config, dtype=torch_dtype, trust_remote_code=trust_remote_code
            )
            model.tie_weights()  # transformers 5.0 leaves this out on the meta device
    except _LOAD_ERRORS as error:
        raise _load_error("structure", name_or_path, error) from error
    return model


def load_language_model(
    name_or_path: str = ATLAS,
    dtype: str = "float32",
    revision: str | None = None,
    add_bos: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model with its head, frozen and in eval mode, and its fast tokenizer.

    **Frozen** means that no parameter requires gradients, so that learning an edit never fills
    memory with gradients of the whole model. An editor that trains weights asks for their
    gradients itself.

    Args:
        name_or_path: ``atlas`` (in the package, of one stack), ``atlas-t5`` (in the package, an
            encoder-decoder), the folder of a saved model, or a hub name.
        dtype: Type of the weights, one of :data:`DTYPES`; never guessed from the checkpoint.
        revision: Branch, tag or commit of a hub model.
        add_bos: Begin every text with the BOS token although the tokenizer does not, for models
            trained so (a GPT-2 trained on documents that begin with ``<|endoftext|>``).
        trust_remote_code: Run the Python code of the model's folder or hub repository, where it has
            some. It can do whatever you can; read it first.

    Returns:
        The model and the tokenizer; padding is on the right, and the end-of-text token stands in
        for a missing padding token.

    Raises:
        ModelLoadError: If weights or tokenizer cannot be read, weights are missing from the
            checkpoint, the tokenizer is not a fast one, or the model needs code that is not
            trusted.
    """
    torch_dtype = parse_dtype(dtype)
    config = load_config(name_or_path, revision, trust_remote_code)
    source = locate(name_or_path)
    try:
        with _no_progress_bar():
            model, loading = auto_class(config).from_pretrained(
                source,
                config=config,
                dtype=torch_dtype,
                revision=revision,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except _LOAD_ERRORS as error:
        raise _load_error("weights", source, error) from error
    # Exported adapters store this as the name of their base model; they may be made elsewhere.
    local = name_or_path not in PACKAGED and Path(source).is_dir()
    model.name_or_path = str(Path(source).absolute()) if local else name_or_path
    model.config._name_or_path = source
    model.requires_grad_(False)
    model.train(False)
    tokenizer = load_tokenizer(source, revision, trust_remote_code)
    _require_complete(name_or_path, model, loading["missing_keys"], tokenizer)
    if add_bos:
        _prepend_bos(name_or_path, tokenizer)
    return model, tokenizer


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of weight loading: memory-mapped tensors load at once."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as above


def adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its BOS token before every text."""
    first: list[int] = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def _prepend_bos(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer prepend its BOS token to every text, unless it does so already."""
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if bos is None or bos_id is None:
        raise ModelLoadError(f"the tokenizer of {name} has no BOS token; leave `add_bos` out")
    if not adds_bos(tokenizer):
        backend: Any = tokenizer
        backend.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bos_id)]
        )


def _require_complete(
    name: str, model: PreTrainedModel, missing: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a checkpoint with missing weights or with another model's tokenizer."""
    # transformers initialises missing weights at random and only warns.
    if lacking := sorted(missing):
        raise ModelLoadError(
            f"the checkpoint {name} lacks {len(lacking)} weights of {type(model).__name__}, "
            f"first {lacking[0]}; save the model with its language-modelling head"
        )
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelLoadError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, its model embeds {rows}; "
            "save the tokenizer that the model was trained with in its folder"
        )


def load_tokenizer(
    name_or_path: str = ATLAS, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model, padding on the right.

    Args:
        name_or_path: As for :func:`load_language_model`.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: As for :func:`load_language_model`.

    Raises:
        ModelLoadError: If there is none, if it cannot give character offsets, or if it needs code
            that is not trusted.
    """
    source = locate(name_or_path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, use_fast=True, trust_remote_code=trust_remote_code
        )
    except _LOAD_ERRORS as error:
        raise _load_error("tokenizer", source, error) from error
    # Without tokenizer files, transformers returns a tokenizer of special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelLoadError(
            f"no tokenizer was found in {name_or_path}; save it beside the model with "
            "`tokenizer.save_pretrained(folder)`"
        )
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"the tokenizer of {name_or_path} ({type(tokenizer).__name__}) gives no character "
            "offsets, so the subject of an edit cannot be found; save a fast tokenizer "
            "(tokenizer.json) in the model's folder"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelLoadError(
                f"the tokenizer of {name_or_path} has neither a padding nor an end-of-text token; "
                "set `pad_token` in its tokenizer_config.json"
            )
        # An existing token leaves the vocabulary, and so the embedding matrix, unchanged.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _load_error(part: str, source: str, error: Exception) -> ModelLoadError:
    """Build a one-sentence error for a failed download or read; the details go to the log."""
    logger.debug("could not load the %s of %s", part, source, exc_info=error)
    if "trust_remote_code" in str(error):
        return _untrusted_error(source, f"code of its own for its {part}")
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    if Path(source).is_dir():
        remedy = (
            "check that the folder has config.json, model.safetensors and tokenizer.json; "
            "other weight formats are not read, convert them with `model.save_pretrained(folder)`"
        )
    else:
        remedy = (
            "check the name and the network connection, or give the folder of a saved model, "
            f"or use a model that ships with the package: {_packaged()}"
        )
    return ModelLoadError(f"could not load the {part} of {source!r} ({reason}); {remedy}")


def _untrusted_error(source: str, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{source} brings {what}, which was not run: it could do whatever you can. Read it; if you "
        "trust it, add --lm_trust_remote_code true (in Python: trust_remote_code=True), or take a "
        "model of an architecture that transformers itself has"
    )
