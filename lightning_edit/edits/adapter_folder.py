"""LoRA adapter of somebody else's, saved by ``peft``, as updates of weights."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from lightning_edit.edits.delta import LowRank
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.weights import weight

_FILE = "adapter_config.json"
#: Settings of ``peft`` under which an adapter is more than a product of two matrices.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}


_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: str | Path) -> bool:
    """Return whether a path is the folder of an adapter.

    Args:
        folder: A path, or the name of a model.
    """
    return (Path(folder) / _FILE).is_file()


def adapter_updates(model: nn.Module, folder: Path) -> dict[str, LowRank]:
    """Return the update of each weight that a LoRA adapter changes, exactly as its factors.

    Args:
        model: The base model; it is bit for bit the same afterwards.
        folder: Folder of the adapter.

    Returns:
        By parameter name: scaled ``B`` and ``A``.

    Raises:
        ConfigError: If the adapter is not a plain LoRA, or adapts tied weights.
    """
    config = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    for name, plain in _PLAIN.items():
        if config.get(name) not in plain:
            raise ConfigError(
                f"the adapter in {folder} has {name}={config[name]!r}, so it is no plain product "
                "of two matrices; merge it (`PeftModel.merge_and_unload()`) and give the merged "
                "model as `after`"
            )
    if not (folder / _WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} has no {_WEIGHTS}; other formats may run code when they are read, so save "
            "the adapter again with `model.save_pretrained(folder)`"
        )
    from peft import PeftModel  # a slow import that only this needs
    from peft.tuners.lora import LoraLayer

    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with warnings.catch_warnings():
        # peft 0.21 reads a deprecated attribute name of transformers 5.23.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
    try:
        layers = {
            name: _factors(layer)
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
    finally:
        adapted.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
    updates = {f"{name}.weight": update for name, update in layers.items()}
    for name in updates:
        if tied := weight(model, name).tied_to:
            raise ConfigError(
                f"the adapter in {folder} changes {name} but not {tied[0]}, which is tied to it; "
                "untie them in the base model (tie_word_embeddings=False)"
            )
    return updates


def _factors(layer: Any) -> LowRank:
    """Return a layer's update as (d_out, r) and (r, d_in); of an embedding (rows, r), (r, d)."""
    (name,) = layer.active_adapters
    scale = layer.scaling[name]
    if name in layer.lora_embedding_A:
        A, B = layer.lora_embedding_A[name].detach(), layer.lora_embedding_B[name].detach()
        return LowRank(A.mT.float(), (B.mT * scale).float())
    A, B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return LowRank((B * scale).float(), A.float())
