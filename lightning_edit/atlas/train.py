"""Training of the packaged language models: their Lightning module and data module.

``lightning-edit fit --config configs/atlas/language_model.yaml`` reproduces the model of one stack,
``configs/atlas/language_model_t5.yaml`` the one of two.

Axis names: ``b`` -- rows; ``t`` -- positions; ``v`` -- vocabulary.
"""

import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightning_edit.atlas.architectures import build_llama, build_t5
from lightning_edit.atlas.evaluate import evaluate, share
from lightning_edit.atlas.graph import load_atlas
from lightning_edit.atlas.packing import PackedRows, encode_sentences
from lightning_edit.atlas.pairs import PairBatches
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

    For two stacks the prompt of a sentence goes to the encoder and its answer to the decoder.

    Args:
        vocab_size: Vocabulary size of the tokenizer, which is trained on the same text.
        length: Tokens per row; of no effect with two stacks, which are not packed.
        max_positions: Maximum input length of the model in tokens.
        batch_size: Rows per batch; with two stacks, sentences per batch.
        seed: Seed of the sentence order.
        two_stacks: Whether the model has an encoder and a decoder.
    """

    def __init__(
        self,
        vocab_size: int = 2048,
        length: int = 64,
        max_positions: int = 128,
        batch_size: int = 32,
        seed: int = 0,
        two_stacks: bool = False,
    ) -> None:
        super().__init__()
        self.two_stacks = two_stacks
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.sentences = sentences(load_atlas())
        texts = [sentence.text for sentence in self.sentences]
        self.tokenizer = train_tokenizer(texts, vocab_size, max_positions, two_stacks)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of endless batches for ``max_steps`` steps.

        A batch is ``(ids, weights)``, and with two stacks also what the encoder reads and its mask.
        """
        end_id = self.tokenizer.eos_token_id
        encoded = encode_sentences(self.tokenizer, self.sentences)
        if self.two_stacks:
            start_id = self.tokenizer.pad_token_id
            pairs = PairBatches(encoded, start_id, end_id, self.batch_size, self.seed)
            return DataLoader(pairs, batch_size=None)
        return DataLoader(
            PackedRows(encoded, end_id, self.length, self.seed), batch_size=self.batch_size
        )


class AtlasLanguageModel(LightningModule):
    """Small language model, trained on the sentences of :class:`AtlasTextDataModule`.

    A Llama, or a T5 where the data module's ``two_stacks`` says so.

    Args:
        hidden_size: Width of the residual stream.
        layers: Number of transformer blocks; with two stacks, of the encoder.
        intermediate_size: Width of the MLP: the dimension of the keys of locate-then-edit methods.
        heads: Attention heads.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup: Steps of linear warm-up; cosine decay to a hundredth of the peak follows.
        decay_steps: Step at which the cosine decay ends; ``max_steps`` may stop earlier.
        save_every: Steps between evaluations; the model is saved after each.
        save_to: Output folder of the model and its tokenizer.
        save_dtype: Dtype of the saved weights, ``float32`` or ``float16``.
        decoder_layers: Number of blocks of the decoder of a model of two stacks.
    """

    model: PreTrainedModel

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
        save_dtype: Literal["float32", "float16"] = "float32",
        decoder_layers: int = 3,
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
        self.save_dtype = save_dtype
        self.decoder_layers = decoder_layers

    @property
    def data(self) -> AtlasTextDataModule:
        """The Trainer's data module, whose tokenizer is the model's."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if not isinstance(data, AtlasTextDataModule):
            raise TypeError(
                f"AtlasLanguageModel is trained on AtlasTextDataModule; got {type(data).__name__}"
            )
        return data

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokenizer of the data module."""
        return self.data.tokenizer

    def configure_model(self) -> None:
        """Build the model once the vocabulary size is known."""
        if hasattr(self, "model"):
            return
        sizes = {
            "hidden_size": self.hidden_size,
            "layers": self.layers,
            "intermediate_size": self.intermediate_size,
            "heads": self.heads,
        }
        if self.data.two_stacks:
            self.model = build_t5(self.tokenizer, decoder_layers=self.decoder_layers, **sizes)
        else:
            self.model = build_llama(self.tokenizer, **sizes)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the weighted next-token loss of one batch."""
        ids, weights, *prompts = batch
        inputs = {"input_ids": ids}
        if prompts:
            inputs = dict(zip(("input_ids", "attention_mask"), prompts, strict=True))
            inputs["decoder_input_ids"] = ids
        loss = weighted_loss(self.model(**inputs, use_cache=False).logits, ids, weights)
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
        config = self.model.config
        special = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        ids = {name: getattr(config, name, None) for name in special}
        saved = copy.deepcopy(self.model).to(getattr(torch, self.save_dtype))
        saved.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            **{name: value for name, value in ids.items() if value is not None}, do_sample=False
        )
        saved.save_pretrained(folder)
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
