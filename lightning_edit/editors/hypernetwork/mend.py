"""MEND: a hypernetwork that transforms one fine-tuning gradient into a low-rank update."""

from lightning_edit.editors.hypernetwork.gradient_transforms import GradientTransformEditor
from lightning_edit.models.sites import StackChoice


class MEND(GradientTransformEditor):
    r"""Model Editor Networks with Gradient Decomposition: a hypernetwork on fine-tuning gradients.

    The gradient of an edit's loss by a weight is a sum over tokens of :math:`\delta_i u_i^\top`. A
    small network, shared by all edited weights of one shape and initialised as the identity, maps
    every :math:`(u_i, \delta_i)` to :math:`(\tilde u_i, \tilde\delta_i)`; the edit adds
    :math:`\alpha_\ell \sum_i \tilde\delta_i \tilde u_i^\top`. It is trained so that this single
    step makes the edit, generalises to rephrases and preserves locality.

    Mitchell, Lin, Bosselut, Finn, Manning: *Fast Model Editing at Scale*, ICLR 2022, arXiv
    2110.11309, section 3 and algorithms 1 and 2.

    Args:
        rank: Rank of the network's matrices; 1920 in the paper's appendix.
        num_blocks: Residual blocks of the network; the authors' ``n_hidden: 1`` plus one.
        step_size: Initial value of every :math:`\alpha_\ell`; the authors' ``edit_lr``.
        step_size_lr: Adam's learning rate for :math:`\alpha_\ell`; the authors' ``lr_lr``.
        layers: Blocks whose MLP projections are edited; ``None``: the last three, or the last half
            of a model with fewer than six; of two stacks the last two of each.
        stack: Stacks that are edited where a model has two (T5, BART): ``both``, ``encoder`` or
            ``decoder``. ``layers`` are then blocks of each.
        modules: Dotted names of linear layers to edit, in place of ``layers`` and ``stack``.
        lr: Adam's learning rate for the network.
        decay_steps: Optimiser steps of the linear decay of both learning rates to zero; ``None``:
            constant, as in the authors' code.
        c_edit: Weight of the new answers' negative log-likelihood; the authors' ``cedit``.
        c_loc: Weight of the KL divergence on locality prompts; the authors' ``cloc``.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit of a training step, and another as its
            rephrase: more variety than the paper's fixed edit prompt.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        together: Write the edits of a training batch as one update; ``False``: each one alone, in
            parallel.
        rows_per_pass: Gradient checkpointing, for large models: most rows in a pass of the language
            model. The activations of one pass at a time are in memory, and the backward pass
            computes them again. ``None``: those of all rows are kept.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: Trained parameters: a Lightning checkpoint or a file from ``save_weights``. The
            edited layers, ``rank`` and ``num_blocks`` then come from the file.

    Note:
        The update is added, as in the authors' code: an untrained network takes a tiny step *up*
        the gradient, and training finds the sign. The authors step :math:`\alpha_\ell` with two
        optimisers, with ``lr`` and with ``lr_lr``; here one Adam has two groups, since the step
        with 1e-6 is negligible next to the one with 1e-4. EasyEdit's training loss is on the edit
        prompt itself; here, as in the paper, it is on rephrases.

        On T5 and BART encoder and decoder are edited, as in the paper (T5-XL: blocks 22 and 23 of
        either, BART-base: 4 and 5). Two layers of one shape share a network, whichever stack they
        are in, and the encoder's gradient is that of every token of the prompt.
    """

    def __init__(
        self,
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
