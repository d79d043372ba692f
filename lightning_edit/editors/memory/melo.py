"""MELO: Yu et al., MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA, AAAI 2024.

arXiv 2312.11795.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_edit.editors.auto_rate import rate_for
from lightning_edit.editors.memory.base import (
    MemoryEditor,
    Projection,
    TrialAdapter,
    at_least_single,
)
from lightning_edit.editors.memory.block_lora import BlockAdapter, IndexAdapter, block_update
from lightning_edit.editors.memory.neuron_index import NeuronIndex
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.module_adapter import ModuleAdapter, attached
from lightning_edit.inference.suffix.upper_blocks import UpperBlocks
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch

#: ``lr="auto"``: share of the loss that the first step takes from it, to first order.
STEP_REACH = 0.1


class MELO(MemoryEditor[NeuronIndex]):
    """MELO: each batch of edits trains a small LoRA block of its own, and an index switches it on.

    The index holds clusters of the activations that an index layer has at the last tokens of edited
    prompts. A prompt in a cluster reads the block of the nearest member for its whole answer; any
    other reads none. Clusters of the same answer grow, those of different answers shrink until
    they meet, and members that fall out are forgotten.

    Args:
        index_layer: Block of the index; ``None``: the one below the lowest block with LoRA.
        index_projection: MLP projection whose output is the index: ``down`` (the authors' T5 and
            BERT) or ``up`` (their GPT-2 XL).
        layers: Blocks with LoRA, all above the index; ``None``: by depth, all but the first of
            ``default_layers``.
        targets: MLP projections with LoRA in them: ``down``, ``up`` (gate included) or both, as in
            the authors' T5.
        rank: Rank p of a block (2; 4 for BERT).
        scale: Factor of a block's product. The authors' is r / p, the number of blocks that one
            wide LoRA is divided into (20 for T5); here blocks are not limited.
        radius: Radius of a new cluster, in units of the activation (75 for T5, 0.5 for GPT-2 XL,
            0.1 for BERT). ``None``: ``radius_share`` of the mean norm of the batch's keys.
        radius_share: See ``radius``.
        steps: Optimiser steps on a block (50).
        lr: Adam's learning rate (1e-2 for T5, 1e-3 for GPT-2 XL). ``auto``: for each batch the rate
            at which the first step takes, to first order, :data:`STEP_REACH` of the loss.
        decay_every: Steps after which the rate is halved (20 for T5, 30 for GPT-2 XL).
        same_label: When two answers are the same: ``tokens``, equal ids; ``sum_id``, equal sum of
            the ids, as in the authors' code, where answers can collide.

    Note:
        A block is trained without any other, so an undo in the middle equals never having edited:
        the index is built again from the edits that stay, radii and forgotten keys included.
    """

    batched: ClassVar[bool] = True

    def __init__(
        self,
        index_layer: int | None = None,
        index_projection: Projection = "down",
        layers: list[int] | None = None,
        targets: list[Projection] | None = None,
        rank: int = 2,
        scale: float = 20.0,
        radius: float | None = None,
        radius_share: float = 0.3,
        steps: int = 50,
        lr: float | Literal["auto"] = "auto",
        decay_every: int = 20,
        same_label: Literal["tokens", "sum_id"] = "tokens",
    ) -> None:
        super().__init__()
        own = radius_share if radius is None else radius
        rate = 1.0 if lr == "auto" else lr
        if steps < 1 or rate <= 0 or rank < 1 or decay_every < 1 or own <= 0 or targets == []:
            raise ValueError(
                "MELO needs steps, rank and decay_every of at least 1, lr auto or > 0, radius and "
                "radius_share > 0 and a projection in targets, got "
                f"{steps}, {rank}, {decay_every}, {lr}, {radius}, {radius_share}, {targets}"
            )
        self.index_layer = index_layer
        self.index_projection: Projection = index_projection
        self.layers = layers
        self.targets: list[Projection] = ["up", "down"] if targets is None else targets
        self.rank = rank
        self.scale = scale
        self.radius = radius
        self.radius_share = radius_share
        self.steps = steps
        self.lr: float | Literal["auto"] = lr
        self.decay_every = decay_every
        self.same_label = same_label

    @property
    def index_block(self) -> int:
        """Number of the block with the index, in the bound model."""
        if self.index_layer is not None:
            return self.index_layer
        return max(0, min(self.lora_layers, default=0) - 1)

    @property
    def lora_layers(self) -> list[int]:
        """Numbers of the blocks with LoRA, in the bound model."""
        if self.layers is not None:
            return sorted(self.layers)
        return self.layers_for_null(self.view.num_blocks)

    @property
    def index_module(self) -> str:
        """Dotted name of the projection whose output is the index."""
        return self.site(self.index_block, self.index_projection)

    @property
    def modules_with_blocks(self) -> list[str]:
        """Dotted names of the projections with LoRA."""
        found = []
        for layer in self.lora_layers:
            parts = self.view.block(layer)
            found += list(parts.mlp_up) if "up" in self.targets else []
            found += [parts.mlp_down] if "down" in self.targets else []
        return found

    def on_bind(self) -> None:
        """Prepare the runtime.

        Raises:
            ArchitectureError: If there is no block with LoRA above the index, or the index has
                read the last token of a prompt alone.
        """
        if not self.lora_layers or min(self.lora_layers) <= self.index_block:
            raise ArchitectureError(
                "MELO decides at an index block and acts in blocks above it, but the index is in "
                f"block {self.index_block} and LoRA in {self.lora_layers} of "
                f"{self.view.num_blocks} blocks; give index_layer and layers, or a deeper model"
            )
        super().on_bind()
        self.require_context(self.index_block, self.index_module)

    def empty_memory(self) -> NeuronIndex:
        """Return an index without clusters."""
        assert self.index_module  # an unknown block raises
        return NeuronIndex(sum_labels=self.same_label == "sum_id")

    def adapters(self, memory: NeuronIndex) -> Mapping[str, ModuleAdapter]:
        """Return the index's adapter and those of the blocks."""
        found: dict[str, ModuleAdapter] = {self.index_module: IndexAdapter(memory)}
        for name in self.modules_with_blocks:
            factors = [(one.state[f"{name}.A"], one.state[f"{name}.B"]) for one in memory.deltas]
            found[name] = BlockAdapter(factors, self.scale)
        return found

    def learn(self, part: EditBatch, memory: NeuronIndex) -> Delta:
        """Train a block on a batch and read the keys of its prompts."""
        with self.stage("keys"):
            keys = self._keys([item.prompt_ids for item in part.encoded])
        factors, losses = self._train(part)
        longest = max(len(item.target_ids) for item in part.encoded)
        labels = torch.full((len(part), longest), -1)
        for row, item in zip(labels, part.encoded, strict=True):
            row[: len(item.target_ids)] = torch.tensor(item.target_ids)
        radius = self.radius or self.radius_share * float(keys.norm(dim=1).mean())
        state = {"key": keys, "label": labels, "radius": torch.tensor([radius]), **factors}
        info = {"loss": losses[-1], "steps": len(losses)} | self.chosen_info()
        return Delta(part.ids, state=state, info=info)

    @torch.no_grad()
    def _keys(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the index module's output at the last token of each prompt, (n, d)."""
        rows = AnswerRows.pad([(ids, ()) for ids in prompts], self.input_device)
        model = self.language_model
        with capture(model, {self.index_module: "output"}, stop=True) as captured:
            model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False)
        return at_least_single(captured[self.index_module][rows.rows, rows.positions])

    def _train(self, part: EditBatch) -> tuple[dict[str, Tensor], list[float]]:
        """Train the factors of a block on the batch's mean negative log-likelihood."""
        rows = AnswerRows.pad(
            [(item.prompt_ids, item.target_ids) for item in part.encoded], self.input_device
        )
        generator = torch.Generator().manual_seed(part.seed)
        factors: dict[str, Tensor] = {}
        for name in self.modules_with_blocks:
            d_out, d_in = weight(self.language_model, f"{name}.weight").shape
            bound = d_in**-0.5  # Kaiming's, with the slope that LoRA takes
            first = (2 * torch.rand(self.rank, d_in, generator=generator) - 1) * bound
            factors[f"{name}.A"] = first.to(rows.ids.device).requires_grad_()
            factors[f"{name}.B"] = torch.zeros(
                d_out, self.rank, device=rows.ids.device, requires_grad=True
            )
        upper = UpperBlocks(self.view, rows, min(self.lora_layers))
        losses: list[float] = []
        with ExitStack() as stack:
            adapters = {
                name: self._trial(rows, factors[f"{name}.A"], factors[f"{name}.B"])
                for name in self.modules_with_blocks
            }
            stack.enter_context(attached(self.language_model, adapters))
            rate = self.lr
            if rate == "auto":
                first = rows.per_row(upper.nll()).mean()
                rate = rate_for(self, first, list(factors.values()), STEP_REACH)
            optimizer = torch.optim.Adam(factors.values(), lr=rate)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.decay_every, 0.5)
            for step in range(self.steps):
                self.progress(step, self.steps)
                loss = rows.per_row(upper.nll()).mean()
                losses.append(float(loss.detach()))
                gradients = torch.autograd.grad(loss, list(factors.values()))
                for value, gradient in zip(factors.values(), gradients, strict=True):
                    value.grad = gradient
                optimizer.step()
                schedule.step()
        self.progress(self.steps, self.steps)
        return {name: value.detach() for name, value in factors.items()}, losses

    def _trial(self, rows: AnswerRows, down: Tensor, up: Tensor) -> TrialAdapter:
        def change(hidden: Tensor, output: Tensor) -> Tensor:
            return output + block_update(hidden, down, up, self.scale).to(output.dtype)

        return TrialAdapter(rows, change)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the index block and the two after it, deep as in the authors' GPT-2 XL.

        There the index is block 35 of 48, with LoRA in blocks 36 and 37.
        """
        index = max(0, min(round(35 / 47 * (num_blocks - 1)), num_blocks - 2))
        return [layer for layer in (index, index + 1, index + 2) if layer < num_blocks]

    @classmethod
    def layers_for_null(cls, num_blocks: int) -> list[int]:
        """Return the default blocks with LoRA; that of the index has an argument of its own."""
        return cls.default_layers(num_blocks)[1:]

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: the factors of a block, gradients and Adam's moments."""
        width = view.intermediate_size + view.hidden_size
        return 4 * 4 * 2 * 3 * max(0, len(layers) - 1) * width
