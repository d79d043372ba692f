"""MEND: a hypernetwork that transforms one fine-tuning gradient into a low-rank update.

Axis names: ``n`` -- tokens of all edits of a batch; ``d_in``/``d_out`` -- an edited weight is
(d_out, d_in).
"""

from typing import Any

import torch
from torch import nn

from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.hypernet import GradientTransform, informative_rows
from lightning_edit.inference.answers import token_factors
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch


class MEND(HypernetworkEditor):
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
            of a model with fewer than six.
        modules: Dotted names of linear layers to edit, in place of ``layers``.
        lr: Adam's learning rate for the network.
        decay_steps: Optimiser steps of the linear decay of both learning rates to zero; ``None``:
            constant, as in the authors' code.
        c_edit: Weight of the new answers' negative log-likelihood; the authors' ``cedit``.
        c_loc: Weight of the KL divergence on locality prompts; the authors' ``cloc``.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit of a training step, and another as its
            rephrase: more variety than the paper's fixed edit prompt.
        together: Write the edits of a training batch as one update; ``False``: each one alone, in
            parallel.
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
    """

    structure = ("rank", "num_blocks")

    def __init__(
        self,
        rank: int = 1920,
        num_blocks: int = 2,
        step_size: float = 1e-4,
        step_size_lr: float = 1e-4,
        layers: list[int] | None = None,
        modules: list[str] | None = None,
        lr: float = 1e-6,
        decay_steps: int | None = None,
        c_edit: float = 0.1,
        c_loc: float = 1.0,
        own_probes: int = 1,
        other_facts: int = 1,
        any_wording: bool = False,
        together: bool = True,
        seed: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            layers=layers,
            modules=modules,
            lr=lr,
            decay_steps=decay_steps,
            c_edit=c_edit,
            c_loc=c_loc,
            own_probes=own_probes,
            other_facts=other_facts,
            any_wording=any_wording,
            together=together,
            seed=seed,
            checkpoint=checkpoint,
        )
        self.save_hyperparameters()
        self.rank = rank
        self.num_blocks = num_blocks
        self.step_size = step_size
        self.step_size_lr = step_size_lr
        self.transforms = nn.ModuleList()
        self.step_sizes = nn.Parameter(torch.empty(0))
        self._transform_slots: tuple[tuple[int, int], ...] = ()

    def build(self) -> None:
        """Build one gradient-transform network for each shape among the edited weights."""
        shapes = list(dict.fromkeys(handle.shape for handle in self.weights))
        members = {shape: [w.name for w in self.weights if w.shape == shape] for shape in shapes}
        self._transform_slots = tuple(
            (shapes.index(handle.shape), members[handle.shape].index(handle.name))
            for handle in self.weights
        )
        self.transforms = nn.ModuleList(
            GradientTransform(d_in, d_out, len(members[d_out, d_in]), self.rank, self.num_blocks)
            for d_out, d_in in shapes
        ).to(self.device)
        start = torch.full((len(self.weights),), self.step_size, device=self.device)
        self.step_sizes = nn.Parameter(start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two parameter groups: the networks, and the step sizes with their own rate."""
        return [
            {"params": list(self.transforms.parameters())},
            {"params": [self.step_sizes], "lr": self.step_size_lr},
        ]

    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Predict the update from one backward pass by transforming its per-token factors."""
        return self._propose(batch, learn, each=False)[0]

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """Predict one independent update per request, from one backward pass for all."""
        return self._propose(batch, learn, each=True)

    def _propose(self, batch: EditBatch, learn: bool, each: bool) -> list[Delta]:
        rows = [(encoded.prompt_ids, encoded.target_ids) for encoded in batch.encoded]
        model = self.language_model
        modules = [handle.name.removesuffix(".weight") for handle in self.weights]
        loss, factors = token_factors(model, rows, modules, model.device, each)
        ids = [(name,) for name in batch.ids] if each else [batch.ids]
        updates: list[dict[str, LowRank]] = [{} for _ in ids]
        # The networks stay in float32 under mixed precision: the normaliser divides by small
        # numbers.
        with torch.autocast(self.device.type, enabled=False):
            for index, (module, slot) in enumerate(
                zip(modules, self._transform_slots, strict=True)
            ):
                inputs, gradients = (part.to(self.device) for part in factors[module])
                keep = informative_rows(inputs, gradients)
                group, layer = slot
                u, v = self.transforms[group](inputs[keep], gradients[keep], layer, learn)
                v = self.step_sizes[index] * v
                counts = keep.sum(1).tolist() if each else [len(u)]
                for update, left, right in zip(
                    updates, v.split(counts), u.split(counts), strict=True
                ):
                    update[f"{module}.weight"] = LowRank(left.mT, right)
        return [
            Delta(names, update, info={"loss_before": loss})
            for names, update in zip(ids, updates, strict=True)
        ]

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: default-rank networks, two blocks of two float32 matrices each."""
        blocks = [view.block(layer) for layer in layers]
        names = [name for block in blocks for name in (*block.mlp_up, block.mlp_down)]
        shapes = {weight(view.model, f"{name}.weight").shape for name in names}
        return sum(2 * 2 * sum(shape) * 1920 * 4 for shape in shapes)
