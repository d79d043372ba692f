"""Networks that transform the factors of a fine-tuning gradient into those of an update (MEND's).

Axis names: ``n`` -- tokens of all edits of a batch; ``d_in``/``d_out`` -- an edited weight is
(d_out, d_in).
"""

from typing import Any

import torch
from torch import nn

from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.hypernet import GradientTransform, informative_rows
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.sites import stack_blocks
from lightning_edit.models.view import ModelView, Stack
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch


class GradientTransformEditor(HypernetworkEditor, family=True):
    """Family of editors with MEND's network; see :class:`~lightning_edit.editors.MEND`.

    Args:
        rank: Rank of the network's matrices.
        num_blocks: Residual blocks of the network.
        step_size: Initial step size of every weight.
        step_size_lr: Adam's learning rate for the step sizes.
        **options: See :class:`HypernetworkEditor`.
    """

    structure = ("rank", "num_blocks")

    def __init__(
        self, rank: int, num_blocks: int, step_size: float, step_size_lr: float, **options: Any
    ) -> None:
        super().__init__(**options)
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
        rows = self.edit_rows(batch)
        model = self.language_model
        modules = [handle.name.removesuffix(".weight") for handle in self.weights]
        loss, factors = token_factors(
            model, rows, modules, model.device, each, rows_per_pass=self.rows_per_pass
        )
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
    def default_sites(cls, view: ModelView) -> dict[Stack, list[int]]:
        """Return the default layers: with two stacks the last two of each, as MEND's authors do.

        Args:
            view: The model's structure.
        """
        if not view.is_encoder_decoder:
            return super().default_sites(view)
        sizes = {stack: len(stack_blocks(view, stack)) for stack in cls.stacks}
        return {s: list(range(n - max(1, min(2, n // 2)), n)) for s, n in sizes.items()}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: default-rank networks, two blocks of two float32 matrices each."""
        blocks = [view.block(layer) for layer in layers]
        names = [name for block in blocks for name in (*block.mlp_up, block.mlp_down)]
        shapes = {weight(view.model, f"{name}.weight").shape for name in names}
        return sum(2 * 2 * sum(shape) * 1920 * 4 for shape in shapes)
