"""LoRA adapter of somebody else's, saved by ``peft``, as updates of weights."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from lightning_edit.edits.delta import LowRank
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.weights import weight

_FILE = "adapter_config.json"
#: Settings of ``peft`` that say where an adapter is, how large, and how it was trained.
_FREE = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
#: Values of the others under which an adapter is a product of two matrices beside a base model that
#: stays as it is. (Initialisations such as PiSSA's subtract their start from the base weights.)
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_UNSET: tuple[Any, ...] = (None, False, [], {})
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
        model: The base model; it is bit for bit the same afterwards, and in the same mode.
        folder: Folder of the adapter.

    Returns:
        By parameter name: scaled ``B`` and ``A``.

    Raises:
        ConfigError: If the adapter is not a plain LoRA, is for another base model, or adapts tied
            weights.
    """
    config = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    for name, value in config.items():
        if name not in _FREE and value not in _PLAIN.get(name, _UNSET):
            raise ConfigError(
                f"the adapter in {folder} has {name}={value!r}, so it may be no plain product of "
                "two matrices beside its base model; merge it (`PeftModel.merge_and_unload()`) and "
                "give the merged model as `after`"
            )
    if not (folder / _WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} has no {_WEIGHTS}; other formats may run code when they are read, so save "
            "the adapter again with `model.save_pretrained(folder)`"
        )
    from peft import PeftModel  # a slow import that only this needs
    from peft.tuners.lora import LoraLayer

    matrices = _matrices(model, folder)
    modes = {module: module.training for module in model.modules()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    configured_before = "peft_config" in vars(model)
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
        if not configured_before:
            vars(model).pop("peft_config", None)  # older versions of PEFT leave it there
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        for module, mode in modes.items():
            module.training = mode
    if matrices != 2 * len(layers):
        raise ConfigError(
            f"the adapter in {folder} has {matrices} matrices, but only {2 * len(layers)} have a "
            f"place in {type(model).__name__}; give the base model that it was trained on"
        )
    updates = {f"{name}.weight": update for name, update in layers.items()}
    for name in updates:
        if tied := weight(model, name).tied_to:
            raise ConfigError(
                f"the adapter in {folder} changes {name} but not {tied[0]}, which is tied to it; "
                "untie them in the base model (tie_word_embeddings=False)"
            )
    return updates


def _matrices(model: nn.Module, folder: Path) -> int:
    """Count an adapter's matrices; other weights beside them must be those of the base model."""
    base, count = dict(model.named_parameters(remove_duplicate=False)), 0
    with safe_open(str(folder / _WEIGHTS), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # it is no mapping
            if ".lora_" in key:
                count += 1
                continue
            name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if name not in base or not torch.equal(file.get_tensor(key), base[name].cpu()):
                raise ConfigError(
                    f"the adapter in {folder} brings own weights of {name} beside its matrices; "
                    "save it with `save_pretrained(folder, save_embedding_layers=False)`, or merge "
                    "it and give the merged model as `after`"
                )
    return count


def _factors(layer: Any) -> LowRank:
    """Return a layer's update as (d_out, r) and (r, d_in); of an embedding (rows, r), (r, d)."""
    (name,) = layer.active_adapters
    scale = layer.scaling[name]
    if name in layer.lora_embedding_A:
        A, B = layer.lora_embedding_A[name].detach(), layer.lora_embedding_B[name].detach()
        return LowRank(A.mT.float(), (B.mT * scale).float())
    A, B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return LowRank((B * scale).float(), A.float())
