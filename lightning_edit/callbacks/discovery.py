"""Discovery of the Hugging Face model and tokenizer inside any LightningModule."""

from typing import Any

import lightning.pytorch as pl
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.types import EditRequest


def find_language_model(pl_module: pl.LightningModule, attribute: str | None = None) -> nn.Module:
    """Find the Hugging Face model inside a LightningModule, or the one an editor is bound to.

    Args:
        pl_module: The LightningModule that runs.
        attribute: Dotted name of the model in it; ``None`` if it holds exactly one.

    Returns:
        The unwrapped model.

    Raises:
        ConfigError: If there is none, or several and no name.
    """
    if attribute is not None:
        try:
            return pl_module.get_submodule(attribute)
        except AttributeError as error:
            raise ConfigError(
                f"{type(pl_module).__name__} has no module {attribute!r} ({error}); "
                "give `model_attribute` the name under which it holds the language model"
            ) from error
    if isinstance(pl_module, Editor):
        bound: nn.Module = pl_module.language_model
        return bound
    found: dict[str, PreTrainedModel] = {}
    for name, module in pl_module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, PreTrainedModel) and not inside:
            found[name] = module
    if len(found) != 1:
        raise ConfigError(
            f"{type(pl_module).__name__} holds {len(found)} Hugging Face models"
            f"{': ' + ', '.join(found) if found else ''}; expected one. "
            "Give `model_attribute` the name of the one to evaluate"
        )
    return next(iter(found.values()))


def find_tokenizer(given: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """Find the tokenizer: the given one, or the one of the LightningModule or its data module.

    Args:
        given: A tokenizer or prompt encoder, a tokenizer's folder or name, or ``None``.
        trainer: The trainer.
        pl_module: The LightningModule that is trained.

    Raises:
        ConfigError: If there is none.
    """
    if isinstance(given, str):
        return AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    data = getattr(trainer, "datamodule", None)
    # An editor's prompt encoder is there once it is bound; its tokenizer says so otherwise.
    encoder = getattr(pl_module, "_prompts", None)
    places = [getattr(owner, "tokenizer", None) for owner in (pl_module, data)]
    for candidate in (given, encoder, *places):
        if isinstance(candidate, PreTrainedTokenizerBase | PromptEncoder):
            return candidate
    raise ConfigError(
        f"no tokenizer found in {type(pl_module).__name__} or its data; "
        "give `tokenizer` the tokenizer of the language model, or its folder"
    )


def data_requests(trainer: pl.Trainer) -> list[EditRequest]:
    """Return the requests of the split that ``validate`` or ``test`` runs on.

    Args:
        trainer: The trainer.

    Returns:
        Those of the trainer's data module, if that is one of edits; else none.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, EditDataModule):
        return []
    return data.requests("test" if trainer.testing else "val")
