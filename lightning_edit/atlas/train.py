"""Training of the packaged language model: its Lightning module and data module.

``lightning-edit fit --config configs/atlas/language_model.yaml`` reproduces the packaged model.

Axis names: ``b`` -- rows; ``t`` -- positions; ``v`` -- vocabulary.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_edit.atlas.evaluate import evaluate, share
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.packing import PackedRows, encode_sentences
from lightning_edit.atlas.text import sentences
from lightning_edit.atlas.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)


def weighted_loss(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], weights: Float[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Return the next-token cross-entropy, averaged with the weight of each predicted token."""
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    predicted = weights[:, 1:].flatten()
    return (losses * predicted).sum() / predicted.sum()


class AtlasTextDataModule(LightningDataModule):
    """Data module of the atlas training text, tokenised and packed into rows.

    Args:
        vocab_size: Vocabulary size of the tokenizer, which is trained on the same text.
        length: Tokens per row.
        max_positions: Maximum input length of the model in tokens.
        batch_size: Rows per batch.
        seed: Seed of the sentence order.
    """

    def __init__(
        self,
        vocab_size: int = 2048,
        length: int = 64,
        max_positions: int = 128,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.sentences = sentences(load_atlas())
        texts = [sentence.text for sentence in self.sentences]
        self.tokenizer = train_tokenizer(texts, vocab_size, max_positions)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader of endless ``(input_ids, weights)`` batches for ``max_steps`` steps."""
        end_id = self.tokenizer.eos_token_id
        encoded = encode_sentences(self.tokenizer, self.sentences)
        return DataLoader(
            PackedRows(encoded, end_id, self.length, self.seed), batch_size=self.batch_size
        )


class AtlasLanguageModel(LightningModule):
    """Small Llama language model, trained on the sentences of :class:`AtlasTextDataModule`.

    Args:
        hidden_size: Width of the residual stream.
        layers: Number of transformer blocks.
        intermediate_size: Width of the MLP: the dimension of the keys of locate-then-edit methods.
        heads: Attention heads.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup: Steps of linear warm-up; cosine decay to a hundredth of the peak follows.
        decay_steps: Step at which the cosine decay ends; ``max_steps`` may stop earlier.
        save_every: Steps between evaluations; the model is saved after each.
        save_to: Output folder of the model and its tokenizer.
    """

    model: LlamaForCausalLM

    def __init__(
        self,
        hidden_size: int = 192,
        layers: int = 5,
        intermediate_size: int = 640,
        heads: int = 6,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        warmup: int = 100,
        decay_steps: int = 4000,
        save_every: int = 500,
        save_to: str = "runs/atlas/model",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.layers = layers
        self.intermediate_size = intermediate_size
        self.heads = heads
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay_steps = decay_steps
        self.save_every = save_every
        self.save_to = save_to

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokenizer of the Trainer's data module."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if not isinstance(data, AtlasTextDataModule):
            raise TypeError(
                f"AtlasLanguageModel is trained on AtlasTextDataModule; got {type(data).__name__}"
            )
        return data.tokenizer

    def configure_model(self) -> None:
        """Build the Llama model once the vocabulary size is known."""
        if hasattr(self, "model"):
            return
        tokenizer = self.tokenizer
        end_id = tokenizer.eos_token_id
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads,
                max_position_embeddings=tokenizer.model_max_length,
                tie_word_embeddings=False,
                bos_token_id=end_id,
                eos_token_id=end_id,
                pad_token_id=end_id,
            )
        )
        # BOS is also the padding token, and `nn.Embedding` gives padding no gradient.
        self.model.model.embed_tokens.padding_idx = None

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the weighted next-token loss of one batch of packed rows."""
        ids, weights = batch
        loss = weighted_loss(self.model(input_ids=ids, use_cache=False).logits, ids, weights)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Evaluate and save the model every ``save_every`` steps and at the last step."""
        step = self.global_step
        if step % self.save_every == 0 or step == self.trainer.max_steps:
            self.model.train(False)
            counts = evaluate(self.model, self.tokenizer, load_atlas(), limit=300, seed=step)
            self.model.train(True)
            shares = {name: share(count) for name, count in counts.items()}
            self.log_dict({f"atlas/{name}": value for name, value in shares.items()})
            logger.info("step %d: %s", step, shares)
            self.save(Path(self.save_to))

    def save(self, folder: Path) -> None:
        """Save the model, its tokenizer and the generation settings as safetensors and JSON."""
        end_id = self.model.config.eos_token_id
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            bos_token_id=end_id, eos_token_id=end_id, pad_token_id=end_id, do_sample=False
        )
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW without weight decay on norm gains, with linear warm-up and cosine decay."""
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        gains = [p for p in self.model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": gains, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

        def factor(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / self.warmup
            progress = (step - self.warmup) / max(1, self.decay_steps - self.warmup)
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
