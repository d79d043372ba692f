"""Fine-tuning of a language model on texts with plain Lightning, one checkpoint an epoch.

``lightning-edit fit --config configs/train/planted_facts_atlas.yaml`` runs it on planted facts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lightning_edit.analysis.training_data.encoding import encode_texts
from lightning_edit.analysis.training_data.rows import TrainingText, read_texts
from lightning_edit.inference.answer_pass import wide
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder

Example = tuple[str, str, str | None]
"""Id, text and prompt of a training text; Lightning leaves plain tuples of texts as they are."""


class TextFineTuning(LightningModule):
    """Fine-tunes a language model on texts: the loss that an attribution takes gradients of.

    A batch's loss is the mean over its texts of each text's mean negative log-likelihood. Save one
    checkpoint an epoch with Lightning's ``ModelCheckpoint(every_n_epochs=1, save_top_k=-1)``.

    Args:
        lm: ``atlas``, ``atlas-t5``, the folder of a saved model, or a hub name.
        learning_rate: Learning rate of AdamW, the same in every step.
        weight_decay: Weight decay of AdamW.
        lm_bos: Whether BOS is put before every text.
    """

    def __init__(
        self,
        lm: str = "atlas",
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        lm_bos: bool = False,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        model, tokenizer = load_language_model(lm, add_bos=lm_bos)
        self.model: Any = model.requires_grad_(True).train()
        self.encoder = PromptEncoder.for_model(model, tokenizer)

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch of texts."""
        texts = [TrainingText(*one) for one in batch]
        samples = encode_texts(self.model, self.encoder, texts)
        rows = AnswerRows.of(self.model, [row for sample in samples for row in sample.rows])
        logits = wide(answer_logits(self.model, rows))
        nll = nn.functional.cross_entropy(logits, rows.targets, reduction="none")
        loss = rows.per_row(nll).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> AdamW:
        """Return AdamW with a constant learning rate."""
        return AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


class TextDataModule(LightningDataModule):
    """Data module of training texts from JSONL, shuffled anew in every epoch.

    Args:
        path: JSONL with ``text``, or ``prompt`` and ``answer``, in each line.
        batch_size: Texts in a batch.
        seed: Seed of the order.
    """

    def __init__(self, path: str, batch_size: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.path = path
        self.batch_size = batch_size
        self.seed = seed

    def texts(self) -> list[TrainingText]:
        """Return the training texts.

        Raises:
            DataError: If the file cannot be read.
        """
        return read_texts(Path(self.path))

    def train_dataloader(self) -> DataLoader[Example]:
        """Return a loader of lists of texts."""
        examples: Any = [(one.id, one.text, one.prompt) for one in self.texts()]
        return DataLoader(
            examples,
            batch_size=self.batch_size,
            shuffle=True,
            collate_fn=list,
            generator=torch.Generator().manual_seed(self.seed),
        )
