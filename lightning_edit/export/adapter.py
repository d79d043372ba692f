"""Export as a LoRA adapter that ``peft`` loads onto the unedited model."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ExportError
from lightning_edit.models.loading import auto_class, load_config, locate
from lightning_edit.models.weights import weight

Factors = dict[str, tuple[Tensor, Tensor, float]]


def write_adapter(
    folder: Path,
    delta: Delta,
    model_name: str,
    max_rank: int | None,
    trust_remote_code: bool = False,
) -> float:
    """Write a LoRA adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

    The base model is built on the meta device, without weights, so its size does not matter.

    Args:
        folder: Output folder.
        delta: The sum of all edits.
        model_name: Folder or hub name of the unedited model.
        max_rank: Largest LoRA rank of a weight's factors; ``None``: as high as needed.
        trust_remote_code: Whether to run the Python code that the model brings.

    Returns:
        The smallest share of a weight's squared update that was kept; 1.0 is exact.

    Raises:
        ExportError: If a LoRA adapter cannot express the edit.
    """
    config = load_config(model_name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        skeleton: nn.Module = auto_class(config).from_config(
            config, trust_remote_code=trust_remote_code
        )
    transposed = check_expressible(delta, skeleton)
    factors = _lora_factors(delta, max_rank)
    ranks = {_module_name(name): left.shape[1] for name, (left, _, _) in factors.items()}
    top = max(ranks.values())
    lora = LoraConfig(
        r=top,
        lora_alpha=top,
        rank_pattern=ranks,
        alpha_pattern=ranks,  # alpha / rank is 1 in every layer: LoRA does not scale the factors
        target_modules=sorted(ranks),
        fan_in_fan_out=transposed,
        lora_dropout=0.0,
        bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM if config.is_encoder_decoder else TaskType.CAUSAL_LM,
    )
    _save(folder, skeleton, lora, factors, locate(model_name))
    return min(kept for _, _, kept in factors.values())


def check_expressible(delta: Delta, model: nn.Module) -> bool:
    """Check that a LoRA adapter can express a delta.

    Args:
        delta: The sum of all edits.
        model: The model; its weights are not read.

    Returns:
        Whether the edited layers store their weights as (d_in, d_out), as Conv1D does.

    Raises:
        ExportError: If it cannot; the message names a format that works.
    """
    if delta.state or delta.prompts:
        raise ExportError(
            "this edit acts at run time and changes no weight, which LoRA cannot hold; "
            "use --format runtime"
        )
    if not delta.weights:
        raise ExportError("these edits changed no weight, so there is nothing to export")
    layouts: dict[bool, str] = {}
    for name, update in delta.weights.items():
        handle = weight(model, name)
        owner = model.get_submodule(_module_name(name))
        if len(handle.shape) != 2:
            raise ExportError(
                f"the edits also change {name}, which is a vector, and LoRA holds updates of "
                "matrices only; use --format merged or delta"
            )
        if type(owner) not in (nn.Linear, Conv1D):
            raise ExportError(
                f"the edits change {name}, which belongs to a {type(owner).__name__}; adapters are "
                "written for linear layers only, use --format merged or delta"
            )
        if handle.tied_to:
            raise ExportError(
                f"{name} is shared with {handle.tied_to[0]}, but LoRA would change only one of "
                "them; use --format merged or delta"
            )
        if tuple(update.dense().shape) != handle.shape:
            raise ExportError(
                f"the edit of {name} has shape {tuple(update.dense().shape)}, but the model's "
                f"weight has {handle.shape}; give the model that was edited with --model"
            )
        layouts[isinstance(owner, Conv1D)] = name
    if len(layouts) > 1:
        raise ExportError(
            f"the edits touch a Conv1D layer ({layouts[True]}) and a Linear layer "
            f"({layouts[False]}), which one adapter cannot hold; use --format merged or delta"
        )
    return next(iter(layouts))


def _module_name(parameter_name: str) -> str:
    return parameter_name.rpartition(".")[0]


def _lora_factors(delta: Delta, max_rank: int | None) -> Factors:
    factors: Factors = {}
    for name, update in delta.weights.items():
        # A rank above that of the matrix is wasted; truncating to it is lossless.
        limit = min(update.dense().shape)
        limit = limit if max_rank is None else min(limit, max_rank)
        factors |= Delta(delta.request_ids, {name: update}).to_lora(limit)
    return factors


def _save(
    folder: Path, skeleton: nn.Module, config: LoraConfig, factors: Factors, source: str
) -> None:
    with warnings.catch_warnings():
        # peft 0.21 reads a deprecated attribute name of transformers 5.23.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapter: Any = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
    hit = set(adapter.base_model.targeted_module_names)
    if hit != {_module_name(name) for name in factors}:
        raise ExportError(
            f"the names of the edited layers also match {', '.join(sorted(hit)[:4])}; "
            "use --format merged or delta"
        )
    tensors: dict[str, Tensor] = {}
    for name, (left, right, _) in factors.items():
        stem = f"base_model.model.{_module_name(name)}"
        tensors[f"{stem}.lora_A.default.weight"] = right.float().contiguous()
        tensors[f"{stem}.lora_B.default.weight"] = left.float().contiguous()
    adapter.peft_config["default"].base_model_name_or_path = source
    adapter.save_pretrained(str(folder), state_dict=tensors, save_embedding_layers=False)
