"""Attribution of answers to training texts: gradient products at every checkpoint, and scores.

Axis names: ``c`` -- epochs; ``n`` -- training texts; ``q`` -- facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.analysis.training_data import BETA
from lightning_edit.analysis.training_data.baselines import bm25_scores, hidden_state_scores
from lightning_edit.analysis.training_data.checkpoints import read_weights, set_weights
from lightning_edit.analysis.training_data.encoding import LossRows, encode_facts, encode_texts
from lightning_edit.analysis.training_data.index import GradientIndex, IndexSettings
from lightning_edit.analysis.training_data.rows import TracedFact, TrainingText, rows_hash
from lightning_edit.analysis.training_data.subset import subset_modules
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.functional.influence import cosines, dda_scores, tracin_scores
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.models.identity import describe_language_model
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash

#: Methods by gradients, see :meth:`TrainingDataAttributor.gradient_scores`.
GRADIENT_METHODS = (
    "dda", "dda_no_debias", "dda_no_denoise", "gradient_cosine",
    "dda_raw", "dda_raw_no_debias", "dda_raw_no_denoise", "gradient_product",
    "tracin",
)  # fmt: skip


@dataclass(frozen=True)
class Products:
    """Gradient products of texts and facts, before fine-tuning and after each epoch, with norms.

    Args:
        base: Products at θ₀.
        epochs: Products at the checkpoints.
        base_norms: Norms of the texts' and of the facts' gradients at θ₀.
        epoch_norms: The same at the checkpoints.
    """

    base: Float[Tensor, "n q"]
    epochs: Float[Tensor, "c n q"]
    base_norms: tuple[Float[Tensor, " n"], Float[Tensor, " q"]]
    epoch_norms: tuple[Float[Tensor, "c n"], Float[Tensor, "c q"]]

    def cosines(self) -> "Products":
        """Return the same of gradients of length one, so that long gradients do not dominate."""
        pairs = zip(self.epochs, *self.epoch_norms, strict=True)
        ones = tuple(torch.ones_like(one) for one in self.base_norms)
        each = tuple(torch.ones_like(one) for one in self.epoch_norms)
        return Products(
            cosines(self.base, *self.base_norms),
            torch.stack([cosines(one, text, fact) for one, text, fact in pairs]),
            (ones[0], ones[1]),
            (each[0], each[1]),
        )


@dataclass
class TrainingDataAttributor:
    """Finds the training texts that caused answers of a fine-tuned model (DDA and baselines).

    Args:
        model: The model before fine-tuning, θ₀; it has its own weights again after every call.
        encoder: Its tokenizer, with the format of prompts.
        checkpoints: Its checkpoints, one an epoch, in order.
        texts: What it was fine-tuned on.
        settings: Parameter subset and storage of gradients.
        folder: Folder of the index.

    Raises:
        CheckpointError: If there is no checkpoint, or one is of another model.
        ConfigError: If the parameter subset is unknown, or the folder holds another index.
        DataError: If there is no text, or one cannot be encoded.
    """

    model: Any
    encoder: PromptEncoder
    checkpoints: Sequence[Path]
    texts: Sequence[TrainingText]
    settings: IndexSettings
    folder: Path

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("expected at least one training text, got none; give some")
        if not self.checkpoints:
            raise ConfigError(
                "expected at least one checkpoint of the fine-tuning, got none; save one an epoch"
            )
        modules = subset_modules(resolve(self.model), self.settings.subset, self.settings.layers)
        self._samples = encode_texts(self.model, self.encoder, self.texts)
        self._original = {
            name: value.detach().cpu().clone() for name, value in self.model.named_parameters()
        }
        described = describe_language_model(self.model, self.encoder)
        identity = {
            "language_model": {key: value for key, value in described.items() if key != "name"},
            "checkpoints": self._checkpoint_hashes(),
            "text": {"texts": len(self.texts), "sha256": rows_hash(self.texts)},
        }
        self.index = GradientIndex(self.folder, self.settings, modules, identity)

    @property
    def steps(self) -> int:
        """Number of blocks of the index, over all checkpoints: what :meth:`products` counts."""
        return (1 + len(self.checkpoints)) * len(self.index.blocks(len(self.texts)))

    def check(
        self, facts: Sequence[TracedFact], learning_rates: Sequence[float] | None = None
    ) -> None:
        """Check what an attribution is asked for, before anything is computed or written.

        Args:
            facts: The facts.
            learning_rates: TracIn's weight of each checkpoint; ``None``: equal ones.

        Raises:
            DataError: If there is no fact, or one cannot be encoded.
            ConfigError: If there is not one learning rate a checkpoint.
        """
        self._encode(facts)
        self._rates(learning_rates)

    def _encode(self, facts: Sequence[TracedFact]) -> list[LossRows]:
        if not facts:
            raise DataError("expected at least one fact, got none; give some")
        if empty := [one for one in facts if not one.prompt.strip() or not one.answer.strip()]:
            raise DataError(
                f"fact {empty[0].id!r}: expected a prompt and an answer, got {empty[0].prompt!r} "
                f"and {empty[0].answer!r}; write both, or leave the fact out"
            )
        return encode_facts(self.model, self.encoder, facts)

    def _rates(self, learning_rates: Sequence[float] | None) -> list[float]:
        count = len(self.checkpoints)
        rates = [1.0] * count if learning_rates is None else list(learning_rates)
        if len(rates) != count:
            raise ConfigError(
                f"expected {count} learning rates, one a checkpoint, got {len(rates)}; TracIn "
                "weighs each checkpoint with the rate that it was trained with"
            )
        return rates

    def products(
        self, facts: Sequence[TracedFact], progress: Callable[[int], None] | None = None
    ) -> Products:
        """Return gradient products of all texts and facts at θ₀ and every checkpoint.

        Blocks of the index that are there are read, the others made; facts are computed anew.

        Args:
            facts: The facts.
            progress: Called with the number of finished blocks.

        Raises:
            DataError: If there is no fact, one cannot be encoded, or a block is damaged.
            LedgerWriteError: If a block cannot be written.
        """
        queries = self._encode(facts)
        found = []
        try:
            with evaluating(self.model):
                for number in range(1 + len(self.checkpoints)):
                    if number:
                        set_weights(
                            self.model, read_weights(self.checkpoints[number - 1], self.model)
                        )
                    found.append(self._at_checkpoint(number, queries, progress))
        finally:
            set_weights(self.model, self._original)
        (base, texts, of_facts), epochs = found[0], found[1:]
        return Products(
            base,
            torch.stack([one[0] for one in epochs]),
            (texts, of_facts),
            (torch.stack([one[1] for one in epochs]), torch.stack([one[2] for one in epochs])),
        )

    def gradient_scores(
        self,
        products: Products,
        beta: float = BETA,
        learning_rates: Sequence[float] | None = None,
    ) -> dict[str, Float[Tensor, "n q"]]:
        """Return the scores of every method by gradients; high: the text caused the answer.

        ``dda`` debiases and denoises; ``dda_no_debias`` and ``dda_no_denoise`` lack one half,
        ``gradient_cosine`` (the last checkpoint alone) both. Gradients have length one there, since
        those of the base model, which has not fitted the texts, are many times longer than those
        that they are subtracted from. ``dda_raw…`` and ``gradient_product`` take them as they are.

        Args:
            products: What :meth:`products` returned.
            beta: Share of θ₀'s influence that is subtracted.
            learning_rates: TracIn's weight of each checkpoint; ``None``: one, so that TracIn ranks
                as ``dda_raw_no_debias`` does.

        Raises:
            ConfigError: If there is not one learning rate a checkpoint.
        """
        rates = self._rates(learning_rates)
        found = {}
        for name, neither, one in (
            ("dda", "gradient_cosine", products.cosines()),
            ("dda_raw", "gradient_product", products),
        ):
            last = one.epochs[-1:]
            found[name] = dda_scores(one.epochs, one.base, beta)
            found[f"{name}_no_debias"] = dda_scores(one.epochs, None, beta)
            found[f"{name}_no_denoise"] = dda_scores(last, one.base, beta)
            found[neither] = dda_scores(last, None, beta)
        found["tracin"] = tracin_scores(products.epochs, torch.tensor(rates))
        return found

    def baseline_scores(
        self, facts: Sequence[TracedFact], bm25: bool = True
    ) -> dict[str, Float[Tensor, "n q"]]:
        """Return the scores of methods without gradients: hidden-state cosine and BM25.

        Args:
            facts: The facts.
            bm25: Whether to take BM25 too, which needs the package ``bm25s``.

        Raises:
            ConfigError: If ``bm25s`` is wanted and not installed.
        """
        texts = [text.whole for text in self.texts]
        queries = [fact.whole for fact in facts]
        found = {} if not bm25 else {"bm25": bm25_scores(texts, queries)}
        try:
            set_weights(self.model, read_weights(self.checkpoints[-1], self.model))
            found["hidden_cosine"] = hidden_state_scores(self.model, self.encoder, texts, queries)
        finally:
            set_weights(self.model, self._original)
        return found

    def _checkpoint_hashes(self) -> list[str]:
        """Hash the weights of every checkpoint, so that each is known to be whole and to fit."""
        try:
            found = []
            for path in self.checkpoints:
                set_weights(self.model, read_weights(path, self.model))
                found.append(weights_hash(self.model))
            return found
        finally:
            set_weights(self.model, self._original)

    def _at_checkpoint(
        self, number: int, queries: Sequence[LossRows], progress: Callable[[int], None] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return products, norms of texts and norms of facts at one checkpoint."""
        facts = self.index.compute(self.model, queries)
        products, norms = [], []
        blocks = self.index.blocks(len(self._samples))
        for place, block in enumerate(blocks):
            samples = self._samples[block.start : block.stop]

            def make(samples: Sequence[LossRows] = samples) -> Any:
                return self.index.compute(self.model, samples)

            gradients, lengths = self.index.block(number, place, make)
            products.append(gradients.products(facts))
            norms.append(lengths)
            if progress is not None:
                progress(number * len(blocks) + place + 1)
        return torch.cat(products), torch.cat(norms), facts.norms()
