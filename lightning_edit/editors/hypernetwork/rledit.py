"""RLEdit: Li et al., Reinforced Lifelong Editing for Language Models, ICML 2025, arXiv 2502.05759.

Axis names: ``d_in``/``d_out`` -- an edited weight is (d_out, d_in).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.editors.hypernetwork.edit_sequence import (
    EditSequence,
    LocalityBackward,
    LocalityReference,
    NormTerm,
    Rewards,
    clip_together,
)
from lightning_edit.editors.hypernetwork.edit_tokens import LossOver, TokenChoice
from lightning_edit.editors.hypernetwork.edited_readers import reader_of
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.outer_loss import Reduction
from lightning_edit.editors.hypernetwork.scoring import EditedReader, OwnedRow
from lightning_edit.editors.hypernetwork.solving import Projection, SolvingHypernetwork
from lightning_edit.functional.normalise import Variance
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.models.sites import StackChoice
from lightning_edit.types import EditBatch


class RLEdit(SolvingHypernetwork):
    r"""Reinforced Lifelong Editing: MALMEN's hypernetwork, trained on sequences of edits.

    The model is edited step after step and keeps its edits. The reward of a step is the negative of
    :math:`\sum_{i=0}^{k} \mu^i (L_{edit} + c_{loc} L_{loc})_{t-i} + \eta \|\Delta W_t\|^2`: the
    current and past edits must hold on the model after this one, and unrelated answers must stay.
    Gradients add up over the sequence, and one optimiser step follows.

    A batch of the training loader is one sequence (``data.batch_size`` edits), edited in steps of
    ``edits_per_step``. Every past batch is run again, with its own backward pass: the gradient of
    keeping all of them in one graph, at a fraction of its memory.

    Args:
        edits_per_step: Edits per step of a sequence. 20 in the authors' configs.
        back_depth: Steps whose edits are scored after each step, the current one included. 10 in
            the authors' code.
        decay: μ.
        c_norm: η, weight of the squared norm of a step's update; the authors' ``reg_coef``.
        norm_term: ``gradient``: the norm is part of the loss; ``constant``: as in the authors'
            code, where it is computed without a graph and changes nothing.
        locality_reference: Whose answers a step must keep: those of the model just before it
            (``previous``, as in the authors' code, where drift over a sequence costs nothing), or
            of the ``original`` model.
        locality_backward: Weights in the backward pass of the locality loss: the ``edited`` ones
            of its forward pass, or the ``unedited`` of before the step, as in the authors' code,
            where the gradient is slightly wrong.
        clip_accumulated: The authors clip the norm of the accumulated gradient after every step of
            a sequence, which weighs early steps less; ``None``: only the Trainer clips.
        rank: Rank of the network's matrices.
        num_blocks: Residual blocks of the network.
        step_size: Initial value of every layer's η of the network; the authors' ``lr``.
        step_size_lr: Adam's learning rate for those and for the ridges; ``None``: ``lr``.
        projection: ``up``: the MLPs' input projections, gate included; ``down``; ``both``.
        layers: Blocks to edit; ``None``: the nine before the last, or the last half of a model with
            fewer than eighteen.
        stack: Stacks that are edited where a model has two (T5, BART): ``both``, ``encoder`` or
            ``decoder``. ``layers`` are then blocks of each.
        modules: Dotted names of linear layers to edit, in place of ``layers`` and ``stack``.
        token: See :class:`~lightning_edit.editors.hypernetwork.malmen.MALMEN`.
        loss_over: Likewise.
        mini_batch: Rows per pass of the language model; bounds memory.
        tokens_per_pass: Tokens per pass of the network in training; bounds memory.
        variance: See :class:`~lightning_edit.editors.hypernetwork.malmen.MALMEN`.
        reduction: Likewise.
        lr: Adam's learning rate; the authors' ``meta_lr``.
        decay_steps: Optimiser steps of the linear decay of learning rates to zero; ``None``:
            constant.
        c_edit: Weight of the new answers' negative log-likelihood on rephrases.
        c_loc: Weight of the KL divergence on locality prompts; the authors' ``loc_coef``.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit, and another as its rephrase.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: Trained parameters, as for
            :class:`~lightning_edit.editors.hypernetwork.malmen.MALMEN`.

    Note:
        The published code makes a single optimiser step in all, at the end of one sequence; here
        there are as many as sequences. Validation edits its batches as sequences too. Under DDP
        every process has its own sequence, as with ``accumulate_grad_batches`` in one process. The
        paper edits decoders; on two stacks (T5, BART) both are edited and read, as MALMEN does.
    """

    def __init__(
        self,
        edits_per_step: int = 20,
        back_depth: int = 10,
        decay: float = 0.95,
        c_norm: float = 1e-4,
        norm_term: NormTerm = "gradient",
        locality_reference: LocalityReference = "previous",
        locality_backward: LocalityBackward = "edited",
        clip_accumulated: float | None = None,
        rank: int = 1024,
        num_blocks: int = 4,
        step_size: float = 1e-6,
        step_size_lr: float | None = None,
        projection: Projection = "up",
        layers: list[int] | None = None,
        stack: StackChoice = "both",
        modules: list[str] | None = None,
        token: TokenChoice = "ans",
        loss_over: LossOver = "request",
        mini_batch: int = 32,
        tokens_per_pass: int = 128,
        variance: Variance = "exact",
        reduction: Reduction = "mean",
        lr: float = 1e-5,
        decay_steps: int | None = None,
        c_edit: float = 1.0,
        c_loc: float = 0.6,
        own_probes: int = 1,
        other_facts: int = 1,
        any_wording: bool = False,
        any_target: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            num_blocks=num_blocks,
            step_size=step_size,
            step_size_lr=step_size_lr,
            projection=projection,
            token=token,
            loss_over=loss_over,
            mini_batch=mini_batch,
            tokens_per_pass=tokens_per_pass,
            variance=variance,
            reduction=reduction,
            layers=layers,
            stack=stack,
            modules=modules,
            lr=lr,
            decay_steps=decay_steps,
            c_edit=c_edit,
            c_loc=c_loc,
            own_probes=own_probes,
            other_facts=other_facts,
            any_wording=any_wording,
            any_target=any_target,
            together=True,
            seed=seed,
            checkpoint=checkpoint,
        )
        if min(edits_per_step, back_depth) < 1 or not 0 <= decay <= 1:
            raise ValueError(
                "RLEdit needs edits_per_step >= 1, back_depth >= 1 and decay from 0 to 1, got "
                f"{edits_per_step}, {back_depth} and {decay}"
            )
        self.save_hyperparameters()
        self.edits_per_step = edits_per_step
        self.back_depth = back_depth
        self.rewards = Rewards(decay, c_norm, norm_term, locality_reference, locality_backward)
        self.clip_accumulated = clip_accumulated

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: nine before the last (Llama 3: 22 to 30), or the last half."""
        if num_blocks < 18:
            return list(range(num_blocks - max(1, num_blocks // 2), num_blocks))
        return list(range(num_blocks - 10, num_blocks - 1))

    # ----------------------------------------------------------------------------------- training

    def step_gradients(self, examples: MetaBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return loss and gradient of a sequence of edits.

        Args:
            examples: The sequence, with rephrases and locality prompts.

        Returns:
            Terms of the loss, means over the steps, and one gradient for each parameter.
        """
        steps = examples.split(self.edits_per_step)
        state = EditSequence.start(self, self.rewards)
        for number, step in enumerate(steps):
            past = list(reversed(steps[max(0, number + 1 - self.back_depth) : number + 1]))
            state.advance(step, past)
            if self.clip_accumulated is not None:
                clip_together(state.gradients, self.clip_accumulated)
        return {name: value / len(steps) for name, value in state.terms.items()}, state.gradients

    def edited(self, edits: EditBatch, learn: bool = False) -> EditedReader:
        """Return a reader of the model after a sequence of edits, in steps of ``edits_per_step``.

        Args:
            edits: The sequence.
            learn: Whether to update running statistics.
        """
        # The edited weights are part of later steps' backward passes, in a validation too.
        with torch.inference_mode(False), torch.no_grad():
            state = EditSequence.start(self, self.rewards)
            for part in _parts(edits, self.edits_per_step):
                (delta,) = self._propose(part, learn, None, state.parameters)
                state.keep({name: update.dense() for name, update in delta.weights.items()})
        read = reader_of(self.language_model, state.parameters)

        def logits(rows: Sequence[OwnedRow]) -> tuple[AnswerRows, Tensor]:
            batch = self.rows(rows)
            return batch, read(batch, batch.rows)

        return logits


def _parts(edits: EditBatch, size: int) -> list[EditBatch]:
    return [
        EditBatch(
            edits.requests[start : start + size], edits.encoded[start : start + size], edits.seed
        )
        for start in range(0, len(edits), size)
    ]
