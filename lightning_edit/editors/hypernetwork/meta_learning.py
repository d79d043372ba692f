"""Meta-learning steps: what ``fit``, ``validate`` and ``test`` compute for a hypernetwork editor.

Axis names: ``a`` -- answer tokens; ``b`` -- rows, a prompt with its answer; ``v`` -- vocabulary.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_edit.datamodules.loader import StepRequests
from lightning_edit.editors.base import Editor
from lightning_edit.editors.hypernetwork.functional_weights import (
    patched_parameters,
    stacked_factors,
)
from lightning_edit.editors.hypernetwork.meta_batch import (
    MetaBatch,
    MetaBatchCollate,
    MetaBatchSampler,
)
from lightning_edit.editors.hypernetwork.scoring import EditedReader, OwnedRow
from lightning_edit.editors.validation_log import log_evaluation
from lightning_edit.edits.delta import Delta
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.answers import answer_logits, answer_logits_each
from lightning_edit.models.weights import Weight
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)


class MetaLearning(Editor, family=True):
    """Steps of a meta-learning loop over an update that is differentiable in its parameters.

    A step predicts the update of a batch of edits, and reads the edited model on their rephrases
    and on locality prompts. The parameters are those of
    :class:`~lightning_edit.editors.hypernetwork.base.HypernetworkEditor`.
    """

    trained_batches: Tensor
    weights: tuple[Weight, ...]
    source: MetaBatchSampler
    c_edit: float
    c_loc: float
    together: bool
    rows_per_pass: int | None
    seed: int

    @abstractmethod
    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Predict the update of a batch, differentiable in the network's parameters.

        Args:
            batch: Requests and their token ids.
            learn: Whether this is a training step, which updates running statistics.

        Returns:
            The update; its tensors may carry an autograd graph.
        """

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """Predict one independent update per request; see :meth:`propose`."""
        return [self.propose(part, learn) for part in batch.split()]

    def _meta_batch(
        self, batch: MetaBatch | list[EditRequest], batch_idx: int, stage: str, loader: Any
    ) -> MetaBatch:
        """Return a ready batch as it is; make one from the plain requests of anybody's loader."""
        if isinstance(batch, MetaBatch):
            return batch
        others = getattr(loader, "dataset", None)
        collate = MetaBatchCollate(self.source, stage, others, self.seed)
        return collate(StepRequests(batch, self.current_epoch, batch_idx))

    def training_step(self, batch: MetaBatch | list[EditRequest], batch_idx: int) -> Tensor | None:
        """Compute the meta-learning loss: edit, then score rephrases and locality prompts.

        Args:
            batch: Edits of one step with their rephrases and locality prompts, or plain requests.
            batch_idx: Batch index in the epoch.

        Returns:
            The loss; ``None`` (no update) if it is not finite.
        """
        examples = self._meta_batch(batch, batch_idx, "train", self.trainer.train_dataloader)
        asked, locality = self.learnt(examples.outer), self.learnt(examples.locality)
        padded, after = self.logits_after(examples.inner, asked + locality, learn=True)
        outer = padded.rows < len(asked)
        terms = self.terms(after[outer], padded.targets[outer], after[~outer], locality)
        if not torch.isfinite(terms["loss"]):
            log.warning("step %d: the loss is not finite; the step is skipped", self.global_step)
            return None
        self.trained_batches += 1
        for name, value in terms.items():
            size = len(examples.inner)
            self.log(f"train/{name}", value.detach(), prog_bar=True, batch_size=size)
        return terms["loss"]

    def logits_after(
        self, edits: EditBatch, rows: Sequence[OwnedRow], learn: bool = False
    ) -> tuple[AnswerRows, Float[Tensor, "a v"]]:
        """Return the edited model's logits at the answer tokens of some rows.

        Args:
            edits: The edits; written together or each alone, see :attr:`together`.
            rows: Prompts and answers, each with the index of its edit.
            learn: Whether this is a training step.

        Returns:
            The padded rows, and the logits with their autograd graph.
        """
        return self.edited(edits, learn)(rows)

    def edited(self, edits: EditBatch, learn: bool = False) -> EditedReader:
        """Predict the update of a batch, and return a reader of the edited model's logits.

        Args:
            edits: The edits; written together or each alone, see :attr:`together`.
            learn: Whether this is a training step.
        """
        model = self.language_model
        if self.together or len(edits) == 1:
            patched = patched_parameters(self.weights, self.propose(edits, learn))

            def read(rows: Sequence[OwnedRow]) -> tuple[AnswerRows, Tensor]:
                batch = self.rows(rows)
                return batch, answer_logits(model, batch, patched, self.rows_per_pass)

            return read
        changes = stacked_factors(self.weights, self.propose_each(edits, learn))

        def read_each(rows: Sequence[OwnedRow]) -> tuple[AnswerRows, Tensor]:
            batch = self.rows(rows)
            numbers = torch.tensor([number for number, _ in rows], device=batch.ids.device)
            return batch, answer_logits_each(model, batch, changes, numbers, self.rows_per_pass)

        return read_each

    def terms(
        self,
        outer: Float[Tensor, "a v"],
        targets: Int[Tensor, " a"],
        after: Float[Tensor, "a2 v"],
        locality: Sequence[tuple[int, AnswerRow]],
    ) -> dict[str, Tensor]:
        """Return the training loss and its two terms (edit NLL, locality KL), in nats.

        Args:
            outer: Logits of the edited model that should predict ``targets``.
            targets: Tokens of the new answers.
            after: Logits of the edited model at the answers of the locality prompts.
            locality: Those prompts and answers; if empty, the second term is left out.

        Returns:
            ``loss``, ``edit_nll`` (mean over answer tokens) and ``locality_kl`` (likewise, KL of
            the unedited from the edited model).
        """
        nll = nn.functional.cross_entropy(outer.float(), targets)
        kl = drift_kl(self.base_logits(locality), after) if locality else nll.new_zeros(())
        return {"loss": self.c_edit * nll + self.c_loc * kl, "edit_nll": nll, "locality_kl": kl}

    @torch.no_grad()
    def base_logits(self, rows: Sequence[tuple[int, AnswerRow]]) -> Float[Tensor, "a v"]:
        """Return the unedited model's logits at the answer tokens of some rows."""
        size = self.rows_per_pass
        return answer_logits(self.language_model, self.rows(rows), rows_per_pass=size)

    def learnt(self, rows: Sequence[OwnedRow]) -> tuple[OwnedRow, ...]:
        """Return rows of training with what their answers are learnt as: two stacks add the EOS.

        Scores are of the answers alone, as in every evaluation. A row without an answer, where only
        the next token is read, stays as it is.

        Args:
            rows: Prompts and answers, each with the index of its edit.
        """
        label = partial(self.prompts.labels, self.language_model)
        return tuple((edit, (p, label(tuple(a)) if a else a)) for edit, (p, a) in rows)

    def edit_rows(self, batch: EditBatch) -> list[AnswerRow]:
        """Return the prompts and answers whose gradients the update is computed from.

        Args:
            batch: The edits.
        """
        rows = tuple((0, (one.prompt_ids, one.target_ids)) for one in batch.encoded)
        return [row for _, row in self.learnt(rows)]

    def rows(self, rows: Sequence[tuple[int, AnswerRow]]) -> AnswerRows:
        """Pad rows into a batch on the language model's device."""
        device = self.language_model.device
        return AnswerRows.of(self.language_model, [row for _, row in rows], device)

    def validation_step(self, batch: MetaBatch | list[EditRequest], batch_idx: int) -> None:
        """Evaluate edits of the validation requests; see :meth:`evaluate`."""
        loader = self.trainer.val_dataloaders
        self.evaluate(self._meta_batch(batch, batch_idx, "val", loader), "val")

    def test_step(self, batch: MetaBatch | list[EditRequest], batch_idx: int) -> None:
        """Evaluate edits of the test requests; see :meth:`evaluate`."""
        loader = self.trainer.test_dataloaders
        self.evaluate(self._meta_batch(batch, batch_idx, "test", loader), "test")

    @torch.no_grad()
    def evaluate(self, examples: MetaBatch, stage: str) -> None:
        """Log the loss and teacher-forced scores of a batch of edits on all rephrases and probes.

        ``reliability/em@tf`` and ``generalization/em@tf``: every token of the new answer is top-1,
        on the prompt and on the rephrases. ``locality/kept@tf``: share of a probe's answer tokens
        whose top-1 token is the unedited model's; without probes, of other requests' prompts.

        Args:
            examples: Edits of one batch with all their rephrases and locality prompts.
            stage: ``val`` or ``test``, the prefix of the metric names.
        """
        encoded = enumerate(examples.inner.encoded)
        rewrites = tuple((edit, (e.prompt_ids, e.target_ids)) for edit, e in encoded)
        rows = rewrites + examples.outer + examples.locality
        batch, logits = self.logits_after(examples.inner, rows)
        held = batch.rows >= len(rewrites) + len(examples.outer)
        verdicts = batch.verdicts(logits)
        top1, right = verdicts.best, verdicts.right
        kept = torch.zeros(0)
        if examples.locality:
            same = top1[held] == self.base_logits(examples.locality).argmax(-1)
            kept = self.rows(examples.locality).per_row(same.float())
        scores = examples.scores(right.float().tolist(), kept.tolist())
        self.on_evaluated(stage, scores)
        outer = (batch.rows >= len(rewrites)) & ~held if examples.outer else ~held
        terms = self.terms(logits[outer], batch.targets[outer], logits[held], examples.locality)
        log_evaluation(self, stage, scores, terms, len(examples.inner))

    def on_evaluated(self, stage: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Follow the scores of each batch of :meth:`evaluate`; does nothing by default.

        Args:
            stage: ``val`` or ``test``.
            scores: Scores of each request, by metric name.
        """
