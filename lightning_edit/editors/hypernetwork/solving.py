"""Family of hypernetworks that write by ridge regression: network, solve, decoupled gradient.

Training is decoupled: the language model's gradient by an edited weight (module gradient) goes
through the solve analytically, and what is left is back-propagated through the hypernetwork in
mini-batches of tokens. No autograd graph holds both.

Axis names: ``n`` -- tokens of all edits; ``d_in``/``d_out`` -- an edited weight is (d_out, d_in).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_edit.editors.hypernetwork.base import HypernetworkEditor
from lightning_edit.editors.hypernetwork.edit_tokens import (
    EditTokens,
    LossOver,
    TokenChoice,
    read_tokens,
)
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.outer_loss import OuterLoss, Processes, Reduction
from lightning_edit.editors.hypernetwork.scoring import score_rows
from lightning_edit.editors.validation_log import log_evaluation
from lightning_edit.edits.delta import Delta, Dense, LowRank, WeightUpdate
from lightning_edit.exceptions import ArchitectureError, SolveError
from lightning_edit.functional.given_gradient import with_gradient
from lightning_edit.functional.normalise import Variance
from lightning_edit.functional.ridge_update import RidgeUpdate
from lightning_edit.functional.value_network import ValueNetwork
from lightning_edit.models.sites import in_cross_attention
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import Weight, weight
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)

Projection = Literal["down", "up", "both"]


class SolvingHypernetwork(HypernetworkEditor, family=True):
    """Family of hypernetworks whose update is a ridge regression of predicted output changes.

    Args:
        rank: Rank of the network's matrices.
        num_blocks: Residual blocks of the network.
        step_size: Initial value of every layer's step size η.
        step_size_lr: Adam's learning rate for step sizes and ridges; ``None``: ``lr``.
        projection: ``down``: down-projections of the MLPs; ``up``: their input projections, gate
            included; ``both``.
        token: Tokens whose keys and gradients are used, see
            :func:`~lightning_edit.editors.hypernetwork.edit_tokens.read_tokens`.
        loss_over: Whose mean loss their gradients are of.
        mini_batch: Rows per pass of the language model.
        tokens_per_pass: Tokens per pass of the network.
        variance: How the running variance is updated.
        reduction: How the training loss is summed up.
        **options: See :class:`~lightning_edit.editors.hypernetwork.base.HypernetworkEditor`.
    """

    sequential = True
    structure = ("rank", "num_blocks", "token", "loss_over", "mini_batch", "variance")

    def __init__(
        self,
        rank: int,
        num_blocks: int,
        step_size: float,
        step_size_lr: float | None,
        projection: Projection,
        token: TokenChoice,
        loss_over: LossOver,
        mini_batch: int,
        tokens_per_pass: int,
        variance: Variance,
        reduction: Reduction,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(rank, num_blocks, mini_batch, tokens_per_pass) < 1:
            raise ValueError(
                f"{type(self).__name__} needs rank, num_blocks, mini_batch and tokens_per_pass of "
                f"at least 1, got {rank}, {num_blocks}, {mini_batch} and {tokens_per_pass}"
            )
        self.rank = rank
        self.num_blocks = num_blocks
        self.step_size = step_size
        self.step_size_lr = step_size_lr
        self.projection = projection
        self.token = token
        self.loss_over = loss_over
        self.mini_batch = mini_batch
        self.tokens_per_pass = tokens_per_pass
        self.variance = variance
        self.reduction = reduction
        self.networks = nn.ModuleList()
        self._slots: dict[str, tuple[int, int]] = {}

    # ------------------------------------------------------------------------------------ network

    def edited_modules(self) -> list[str]:
        """Return the dotted names of the edited linear layers, in a fixed order."""
        if self.modules_to_edit is not None:
            return self.modules_to_edit
        blocks = self.edited_blocks()
        up = [block.mlp_up if self.projection != "down" else () for block in blocks]
        down = [(block.mlp_down,) if self.projection != "up" else () for block in blocks]
        return [name for pair in zip(up, down, strict=True) for names in pair for name in names]

    def on_bind(self) -> None:
        """Build the networks for the bound model, or check that the existing ones fit.

        Raises:
            ArchitectureError: If an edited layer is in cross-attention, whose tokens may be those
                of either stack.
        """
        outs = {block.cross_attention_out for block in self.view.blocks}
        for name in self.modules_to_edit or ():
            if in_cross_attention(self.view, name) and name not in outs:
                raise ArchitectureError(
                    f"{type(self).__name__} cannot edit {name}: it reads each layer at the tokens "
                    "of the stack that the layer is in, but in cross-attention queries are made of "
                    "the decoder's tokens, and keys and values of the encoder's; choose MLP or "
                    "self-attention layers for `modules`, or edit cross-attention with KE"
                )
        super().on_bind()

    def build(self) -> None:
        """Build one network for each shape among the edited weights."""
        shapes = list(dict.fromkeys(handle.shape for handle in self.weights))
        members = {shape: [w.name for w in self.weights if w.shape == shape] for shape in shapes}
        self._slots = {
            handle.name: (shapes.index(handle.shape), members[handle.shape].index(handle.name))
            for handle in self.weights
        }
        self.networks = nn.ModuleList(
            ValueNetwork(
                d_in,
                d_out,
                len(members[d_out, d_in]),
                self.rank,
                self.num_blocks,
                self.step_size,
                self.variance,
            )
            for d_out, d_in in shapes
        ).to(self.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return Adam's parameter groups: networks, and step sizes and ridges with their own rate.

        With one learning rate it is one group, in the order of the parameters.
        """
        if self.step_size_lr is None:
            return [{"params": list(self.parameters())}]
        own = [p for net in self.networks for p in (net.step_sizes, net.log_ridges)]
        known = {id(parameter) for parameter in own}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": rest}, {"params": own, "lr": self.step_size_lr}]

    def _network(self, handle: Weight) -> tuple[ValueNetwork, int]:
        group, layer = self._slots[handle.name]
        network = self.networks[group]
        assert isinstance(network, ValueNetwork)
        return network, layer

    # ------------------------------------------------------------------------------------ editing

    def read(self, batch: EditBatch, parameters: Mapping[str, Tensor] | None = None) -> EditTokens:
        """Read keys and gradients of a batch of edits.

        Args:
            batch: The edits.
            parameters: Values that replace the model's parameters, by name.
        """
        rows = self.edit_rows(batch)
        modules = [_module(handle) for handle in self.weights]
        return read_tokens(
            self.view,
            rows,
            modules,
            self.mini_batch,
            self.token,
            self.loss_over,
            parameters,
            self.ranks,
        )

    def update_norms(self, tokens: EditTokens) -> None:
        """Update the running statistics: mini-batch by mini-batch, in each layer by layer."""
        parts = {handle.name: tokens.mini_batches(_module(handle)) for handle in self.weights}
        for number in range(max(map(len, parts.values()))):
            for handle in self.weights:
                keys, gradients = parts[handle.name][number]
                self._network(handle)[0].update_norm(
                    keys.to(self.device), gradients.to(self.device)
                )

    @torch.no_grad()
    def solve(self, tokens: EditTokens, requests: int | None) -> dict[str, list[RidgeUpdate]]:
        """Solve for the updates of all edited weights.

        Args:
            tokens: Keys and gradients of the edits.
            requests: Number of requests that are written each alone; ``None``: all together.

        Returns:
            By parameter name, one update, or one for each request.
        """
        found = {}
        for handle in self.weights:
            network, layer = self._network(handle)
            groups = tokens.groups(_module(handle), requests)
            keys, gradients = (part.to(self.device) for part in tokens.factors[_module(handle)])
            pairs = zip(*(self._passes(part) for part in (keys, gradients)), strict=True)
            shifts = torch.cat([network(k, g, layer) for k, g in pairs])
            ridge = float(network.log_ridges[layer])
            found[handle.name] = [
                RidgeUpdate.solve(keys[group], shifts[group], ridge, handle.name)
                for group in (numbers.to(self.device) for numbers in groups)
            ]
        return found

    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Predict the update of a batch, without a graph: :meth:`step_gradients` needs none."""
        return self._propose(batch, learn, None)[0]

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """Predict one independent update per request, from the same passes."""
        return self._propose(batch, learn, len(batch))

    def _propose(
        self,
        batch: EditBatch,
        learn: bool,
        requests: int | None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> list[Delta]:
        with torch.inference_mode(False), torch.no_grad():
            with self.stage("search"):
                tokens = self.read(batch, parameters)
            with self.full_precision(), self.stage("solve"):
                if learn:
                    self.update_norms(tokens)
                solved = self.solve(tokens, requests)
        ids = [batch.ids] if requests is None else [(name,) for name in batch.ids]
        return [
            Delta(
                names,
                {name: _update(updates[number]) for name, updates in solved.items()},
                info={"loss_before": tokens.loss},
            )
            for number, names in enumerate(ids)
        ]

    def _passes(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split tokens into passes of the network."""
        starts = range(self.tokens_per_pass, len(rows), self.tokens_per_pass)
        return rows.tensor_split(list(starts))

    def full_precision(self) -> AbstractContextManager[None]:
        """Return a context without mixed precision: the network divides by small deviations."""
        return torch.autocast(self.device.type, enabled=False)

    # ----------------------------------------------------------------------------------- training

    def outer_loss(self, processes: Processes, times: float = 1.0) -> OuterLoss:
        """Return the training loss.

        Args:
            processes: What becomes of the gradients of several processes.
            times: Factor of the loss.
        """
        return OuterLoss(
            times * self.c_edit,
            times * self.c_loc,
            self.mini_batch,
            self.reduction,
            processes,
        )

    def step_gradients(self, examples: MetaBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the terms of a training step's loss, and its gradient by the parameters.

        Args:
            examples: Edits with their rephrases and locality prompts.

        Returns:
            ``loss`` and its terms, and one gradient for each of the editor's parameters.
        """
        raise NotImplementedError

    def training_step(self, batch: MetaBatch | list[EditRequest], batch_idx: int) -> Tensor | None:
        """Compute the meta-learning loss and its gradient, piece by piece.

        Args:
            batch: Edits of one step with their rephrases and locality prompts, or plain requests.
            batch_idx: Batch index in the epoch.

        Returns:
            The loss, with its gradient attached; ``None`` (no update) if one is not finite.
        """
        examples = self._meta_batch(batch, batch_idx, "train", self.trainer.train_dataloader)
        try:
            terms, gradients = self.step_gradients(examples)
        except SolveError as error:
            log.warning("step %d is skipped: %s", self.global_step, error)
            return None
        if not all(bool(torch.isfinite(one).all()) for one in (terms["loss"], *gradients)):
            log.warning("step %d is skipped: its loss or gradient is not finite", self.global_step)
            return None
        self.trained_batches += 1
        for name, value in terms.items():
            size = len(examples.inner)
            self.log(f"train/{name}", value.detach(), prog_bar=True, batch_size=size)
        return with_gradient(terms["loss"], list(self.parameters()), gradients)

    def network_gradients(
        self,
        tokens: EditTokens,
        solved: Mapping[str, Sequence[RidgeUpdate]],
        by_shifts: Mapping[str, Sequence[Tensor]],
        requests: int | None,
    ) -> list[Tensor]:
        """Back-propagate gradients by wanted output changes to the network's parameters.

        Args:
            tokens: Keys and gradients of the edits.
            solved: The updates, of :meth:`solve`.
            by_shifts: By parameter name, the loss's gradient by each update's shifts, (n, d_out).
            requests: As for :meth:`solve`.

        Returns:
            One gradient for each of the editor's parameters.
        """
        parameters = list(self.parameters())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        places = {id(parameter): place for place, parameter in enumerate(parameters)}
        for handle in self.weights:
            network, layer = self._network(handle)
            keys, gradients = (part.to(self.device) for part in tokens.factors[_module(handle)])
            flat = torch.zeros(len(keys), network.d_out, dtype=torch.float64, device=self.device)
            groups = tokens.groups(_module(handle), requests)
            for one, given, numbers in zip(
                solved[handle.name], by_shifts[handle.name], groups, strict=True
            ):
                flat[numbers.to(self.device)] = given.double()
                by_ridge = one.gradient_of_log_ridge(given)
                total[places[id(network.log_ridges)]][layer] += by_ridge
            own = [p for p in network.parameters() if p is not network.log_ridges]
            passes = (self._passes(part) for part in (keys, gradients, flat))
            for k, g, wanted in zip(*passes, strict=True):
                with torch.enable_grad():
                    shifts = network(k, g, layer)
                    found = torch.autograd.grad(shifts, own, wanted.to(shifts.dtype))
                for parameter, gradient in zip(own, found, strict=True):
                    total[places[id(parameter)]] += gradient
        return total

    @torch.no_grad()
    def evaluate(self, examples: MetaBatch, stage: str) -> None:
        """Log the loss and scores of a batch of edits, in passes of bounded size.

        The scores are those of every trained editor, whatever the number of edits.

        Args:
            examples: Edits of one batch with all their rephrases and locality prompts.
            stage: ``val`` or ``test``, the prefix of the metric names.
        """
        encoded = enumerate(examples.inner.encoded)
        found = score_rows(
            self.edited(examples.inner),
            self.base_logits,
            [(edit, (one.prompt_ids, one.target_ids)) for edit, one in encoded],
            examples.outer,
            examples.locality,
            max(self.mini_batch, 256),
        )
        scores = examples.scores(found.right, found.kept)
        self.on_evaluated(stage, scores)
        loss = self.c_edit * found.nll + self.c_loc * found.kl
        terms = {"loss": loss, "edit_nll": found.nll, "locality_kl": found.kl}
        log_evaluation(self, stage, scores, terms, len(examples.inner))

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: MALMEN's last six; below twelve blocks, the last half."""
        return list(range(num_blocks - max(1, min(6, num_blocks // 2)), num_blocks))

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: default-rank networks, and the largest layer's float64 update."""
        names = [view.block(layer).mlp_down for layer in layers]
        shapes = {weight(view.model, f"{name}.weight").shape for name in names}
        networks = sum(2 * 2 * sum(shape) * 1920 * 4 for shape in shapes)
        return networks + 2 * 8 * max((d_out * d_in for d_out, d_in in shapes), default=0)


def _module(handle: Weight) -> str:
    return handle.name.removesuffix(".weight")


def _update(one: RidgeUpdate) -> WeightUpdate:
    """Return an update as factors, or as a matrix where that is smaller."""
    tokens, d_out = one.shifts.shape
    d_in = one.readout.shape[1]
    if tokens * (d_in + d_out) < d_in * d_out:
        return LowRank(one.shifts.mT.float(), one.readout.float())
    return Dense(one.dense().float())
