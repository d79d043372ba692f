"""InstructEdit: Tian et al., Instruction-based Knowledge Editing for Large Language Models, 2024.

arXiv 2402.16123.
"""

from lightning_edit.editors.hypernetwork.gradient_transforms import GradientTransformEditor
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ConfigError
from lightning_edit.models.sites import StackChoice
from lightning_edit.types import EditBatch
from lightning_edit.types.instructions import INSTRUCTIONS, instructed, is_instructed


class InstructEdit(GradientTransformEditor):
    """InstructEdit: MEND's hypernetwork trained on several editing tasks with instructions.

    Every edit stands behind ``Task: …``, ``Description: …``, ``Input: …`` when its gradient is
    taken, so that one network learns how edits of a task are to generalise, and can be told of a
    task that it was not trained on. Train it on
    :class:`~lightning_edit.datamodules.InstructedDataModule`, which puts the instructions before
    prompts and rephrases, in training, validation and test.

    Args:
        task: Task of requests that have no instruction of their own: ``counterfactual``,
            ``question`` or ``recent``. Their gradient is taken behind that task's held-out wording;
            they are asked as they are.
        rank: Rank of the network's matrices; 1920 in MEND.
        num_blocks: Residual blocks of the network.
        step_size: Initial value of every step size; the authors' ``edit_lr``.
        step_size_lr: Adam's learning rate for the step sizes; the authors' ``lr_lr``.
        layers: Blocks whose MLP projections are edited; ``None``: the last three, or the last half
            of a model with fewer than six; of two stacks the last two of each.
        stack: Stacks that are edited where a model has two (T5, BART): ``both``, ``encoder`` or
            ``decoder``. ``layers`` are then blocks of each.
        modules: Dotted names of linear layers to edit, in place of ``layers`` and ``stack``.
        lr: Adam's learning rate for the network.
        decay_steps: Optimiser steps of the linear decay of both learning rates to zero.
        c_edit: Weight of the new answers' negative log-likelihood.
        c_loc: Weight of the KL divergence on locality prompts.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit of a training step.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        together: Write the edits of a training batch as one update.
        rows_per_pass: Gradient checkpointing, for large models: most rows in a pass of the language
            model. The activations of one pass at a time are in memory, and the backward pass
            computes them again. ``None``: those of all rows are kept.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: Trained parameters: a Lightning checkpoint or a file from ``save_weights``.

    Note:
        The paper's conversational sentiment task, whose loss has a second term, is not among the
        tasks. Instructions are our own wordings, shorter than the authors'. The paper edits
        decoders; on two stacks (T5, BART) the edited layers are MEND's.
    """

    def __init__(
        self,
        task: str = "counterfactual",
        rank: int = 1920,
        num_blocks: int = 2,
        step_size: float = 1e-4,
        step_size_lr: float = 1e-4,
        layers: list[int] | None = None,
        stack: StackChoice = "both",
        modules: list[str] | None = None,
        lr: float = 1e-6,
        decay_steps: int | None = None,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        own_probes: int = 1,
        other_facts: int = 1,
        any_wording: bool = False,
        any_target: bool = False,
        together: bool = True,
        rows_per_pass: int | None = None,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            num_blocks=num_blocks,
            step_size=step_size,
            step_size_lr=step_size_lr,
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
            rows_per_pass=rows_per_pass,
            seed=seed,
            checkpoint=checkpoint,
        )
        self.save_hyperparameters()
        self.task = task

    def on_bind(self) -> None:
        """Check the task, and build the network for the bound model.

        Raises:
            ConfigError: If there is no such task.
        """
        if self.task not in INSTRUCTIONS:
            raise ConfigError(
                f"there is no task {self.task!r} with instructions; use one of "
                f"{', '.join(INSTRUCTIONS)}"
            )
        super().on_bind()

    def with_instructions(self, batch: EditBatch) -> EditBatch:
        """Return a batch whose requests all have an instruction; given ones stay.

        Args:
            batch: The requests.
        """
        if all(is_instructed(request.prompt) for request in batch.requests):
            return batch
        held_out = INSTRUCTIONS[self.task][-1]
        requests = [
            request if is_instructed(request.prompt) else instructed(request, held_out)
            for request in batch.requests
        ]
        return encode_batch(self.prompts, requests, batch.seed)

    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Predict the update of a batch, with instructions before the prompts."""
        return super().propose(self.with_instructions(batch), learn)

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """Predict one independent update per request, with instructions before the prompts."""
        return super().propose_each(self.with_instructions(batch), learn)
