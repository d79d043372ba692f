"""A project that has nothing to do with editing: it fine-tunes with plain Lightning."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import build_tiny, build_tokenizer

TEXTS = ["The capital of France is Lyon", "What is the capital of France? Lyon"]


class FineTuning(pl.LightningModule):
    """Somebody's module: a Hugging Face model under a name of their own, with dropout."""

    def __init__(self, lr: float = 0.01, family: str = "llama", **changes: Any) -> None:
        super().__init__()
        self.backbone = build_tiny(family, **changes).train()
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(bos=True)
        self.lr = lr

    def training_step(self, batch: list[str], batch_idx: int) -> torch.Tensor:
        return self._loss(batch)

    def validation_step(self, batch: list[str], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), batch_size=1)

    def _loss(self, batch: list[str]) -> torch.Tensor:
        losses = []
        for text in batch:
            ids = torch.tensor([self.tokenizer(text)["input_ids"]], device=self.device)
            losses.append(self.backbone(input_ids=ids, labels=ids).loss)
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def loader(repeat: int = 4) -> DataLoader:
    return DataLoader(TEXTS * repeat, batch_size=2, collate_fn=list)


def trainer(root: Path, *callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 4,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "default_root_dir": root,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**(settings | changes))
