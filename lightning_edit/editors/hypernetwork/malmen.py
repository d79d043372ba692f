"""MALMEN: Tan, Zhang and Fu, Massive Editing for Large Language Models via Meta Learning.

ICLR 2024, arXiv 2311.04661. Axis names: ``n`` -- tokens of all edits of a batch.
"""

from torch import Tensor

from lightning_edit.editors.hypernetwork.edit_tokens import LossOver, TokenChoice
from lightning_edit.editors.hypernetwork.edited_readers import (
    reader_of,
    written_alone,
    written_together,
)
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.outer_loss import Reduction, summed
from lightning_edit.editors.hypernetwork.solving import Projection, SolvingHypernetwork
from lightning_edit.functional.normalise import Variance
from lightning_edit.models.sites import StackChoice


class MALMEN(SolvingHypernetwork):
    r"""MAssive Language Model Editing Network: a hypernetwork for up to thousands of edits at once.

    At every answer token a small network maps the layer's input k and its output gradient g, both
    standardised by running statistics, to :math:`\tilde k, \tilde g`; the layer's output there
    shall change by :math:`d = -\eta_\ell (k \cdot \tilde k) \tilde g`. Ridge regression writes all
    of them, :math:`S = (K^\top K + e^{\lambda_\ell} I)^{-1} K^\top D`: where the sum of outer
    products of MEND cancels out between edits, a least-squares solution does not. Training
    alternates between the language model and the network, so that its memory grows with neither
    times the number of edits.

    Args:
        rank: Rank of the network's matrices.
        num_blocks: Residual blocks of the network.
        step_size: Initial value of every :math:`\eta_\ell`; the authors' ``lr``.
        step_size_lr: Adam's learning rate for :math:`\eta_\ell` and :math:`\lambda_\ell`; ``None``:
            ``lr``, as in the authors' code.
        projection: ``down``: the MLPs' down-projections; ``up``: their input projections, gate
            included; ``both``.
        layers: Blocks to edit; ``None``: the last six, or the last half of a stack with fewer than
            twelve.
        stack: Stacks that are edited where a model has two (T5, BART): ``both``, ``encoder`` or
            ``decoder``. ``layers`` are then blocks of each.
        modules: Dotted names of linear layers to edit, in place of ``layers`` and ``stack``.
        token: ``ans``: tokens that predict the answer; ``mask``: all tokens but padding. In an
            encoder, where no token predicts the answer, always all tokens of the prompt.
        loss_over: What the gradients are of: the mean loss of each ``request``, so that they do not
            depend on the others; or of a ``mini_batch``, as in the authors' code, where they shrink
            with its size.
        mini_batch: Rows per pass of the language model; bounds memory. 32 in the authors' configs.
        tokens_per_pass: Tokens per pass of the network in training; bounds memory. 1,024 in the
            authors' configs.
        variance: ``exact``, or ``as_code``: the authors' update overstates the variance, by n/(n-1)
            in a mini-batch of n tokens.
        reduction: ``mean`` of the training loss over answer tokens, or ``sum`` over mini-batches,
            as in the authors' code, where only gradient clipping keeps it from growing with the
            batch.
        lr: Adam's learning rate; the authors' ``meta_lr``.
        decay_steps: Optimiser steps of the linear decay of learning rates to zero; ``None``:
            constant, as in the authors' code.
        c_edit: Weight of the new answers' negative log-likelihood on rephrases.
        c_loc: Weight of the KL divergence on locality prompts; the authors' ``loc_coef``.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit of a training step, and another as its
            rephrase.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        together: Write the edits of a training batch as one update, over all processes under DDP;
            ``False``: each one alone, in parallel.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: Trained parameters: a Lightning checkpoint or a file from ``save_weights``. The
            edited layers, ``rank``, ``num_blocks``, ``token``, ``loss_over``, ``mini_batch`` and
            ``variance`` then come from the file.

    Note:
        Clip the gradient's norm at 1 (``gradient_clip_val: 1.0``), as the authors do. Statistics
        are collected in training only; the authors' go on in validation and test. A batch may have
        any number of edits; the authors' code fails if it is no multiple of the mini-batch. Edited
        weights are computed from pristine ones and rounded once, never added to and subtracted
        from.

        With two stacks both are edited, as in the paper: t5-small the down-projections of blocks 4
        to 7 of either, which is the default; T5-XL ``wi_0`` and ``wo`` of blocks 22 and 23, by
        ``modules``. Of cross-attention, where queries have the decoder's tokens and keys the
        encoder's, only the output projection can be edited.
    """

    def __init__(
        self,
        rank: int = 1920,
        num_blocks: int = 2,
        step_size: float = 1e-6,
        step_size_lr: float | None = None,
        projection: Projection = "down",
        layers: list[int] | None = None,
        stack: StackChoice = "both",
        modules: list[str] | None = None,
        token: TokenChoice = "ans",
        loss_over: LossOver = "request",
        mini_batch: int = 32,
        tokens_per_pass: int = 1024,
        variance: Variance = "exact",
        reduction: Reduction = "mean",
        lr: float = 1e-5,
        decay_steps: int | None = None,
        c_edit: float = 1.0,
        c_loc: float = 1.0,
        own_probes: int = 1,
        other_facts: int = 1,
        any_wording: bool = False,
        any_target: bool = False,
        together: bool = True,
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
            together=together,
            seed=seed,
            checkpoint=checkpoint,
        )
        self.save_hyperparameters()

    def step_gradients(self, examples: MetaBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return loss and gradient of a step: read, solve, run the edited model, and go back.

        Args:
            examples: Edits with their rephrases and locality prompts.
        """
        model = self.language_model
        own = self.read(examples.inner)
        everyones = own.of_all_processes()
        alone = len(examples.inner) if not self.together else None
        tokens = everyones if self.together else own
        with self.full_precision():
            self.update_norms(everyones)
            solved = self.solve(tokens, alone)
        if self.together:
            totals = {name: one.dense() for name, (one,) in solved.items()}
            read, leaves = written_together(model, self.weights, totals)
        else:
            read, leaves = written_alone(model, self.weights, solved)
        loss = self.outer_loss("summed" if self.together else "averaged")
        terms, gradients = loss.gradients(
            self.learnt(examples.outer),
            self.learnt(examples.locality),
            read,
            reader_of(model, None),
            leaves,
            self.rows,
            model.device,
        )
        by_shifts = {}
        for handle in self.weights:
            gradient, ones = gradients[handle.name], solved[handle.name]
            if self.together:
                gradient = summed(gradient)
                oriented = gradient.mT if handle.transposed else gradient
                by_shifts[handle.name] = [ones[0].gradient_of_shifts(oriented.to(self.device))]
            else:
                parts = zip(gradient.to(self.device), ones, strict=True)
                by_shifts[handle.name] = [left.mT[: len(one.shifts)] for left, one in parts]
        with self.full_precision():
            return terms, self.network_gradients(tokens, solved, by_shifts, alone)
