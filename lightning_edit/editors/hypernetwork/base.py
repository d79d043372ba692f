"""Hypernetwork editors: meta-learning of a network that maps requests to weight updates.

A subclass defines its network (:meth:`HypernetworkEditor.build`) and its update for a batch
(``propose``, differentiable). Binding, checkpoints and editing are here, the steps of training and
validation in :mod:`~lightning_edit.editors.hypernetwork.meta_learning`.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_edit.editors.hypernetwork.checkpoint import EditorCheckpoint
from lightning_edit.editors.hypernetwork.meta_batch import (
    MetaBatchCollate,
    MetaBatchSampler,
)
from lightning_edit.editors.hypernetwork.meta_learning import MetaLearning
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.models.identity import describe_language_model, differences
from lightning_edit.models.sites import StackChoice, chosen_stacks, site_blocks
from lightning_edit.models.view import BlockView, Stack
from lightning_edit.models.weights import Weight, weight
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)


class HypernetworkEditor(MetaLearning, family=True):
    """Family of hypernetwork editors: a network trained to edit one language model.

    A batch of the training loader holds the edits of one step. Each request yields the edit itself,
    one rephrase for the generalization loss, and locality prompts: its own probes whose answers
    must stay unchanged, and other requests' prompts with their old answers.

    The loaders of an ``EditDataModule`` sample and tokenise these in their workers
    (:meth:`collate_requests`). A loader of plain ``list[EditRequest]`` works too: the same batches
    are then made in the training step itself, which is slower.

    Args:
        layers: Blocks to edit, of each edited stack; ``None``: :meth:`default_sites`.
        stack: Stacks that are edited where a model has two.
        modules: Dotted names of the linear layers to edit, in place of ``layers``.
        lr: Adam's learning rate.
        decay_steps: Optimiser steps of the linear decay of learning rates to zero; ``None``:
            constant.
        c_edit: Weight of the new answers' negative log-likelihood.
        c_loc: Weight of the KL divergence on locality prompts.
        own_probes: Locality prompts from each request's own probes in a training step.
        other_facts: Locality prompts from other requests in a training step.
        any_wording: Use any wording of a request as the edit of a training step, and another as its
            rephrase: more variety than the paper's fixed edit prompt.
        any_target: Give an edit of a training step the target of another request, of the same
            relation where one is met: a network that sees few facts learns to write any answer.
        together: Write the edits of a batch as one update, to train for batches of edits. ``False``
            writes each one alone, in parallel: the result of ``accumulate_grad_batches`` over
            batches of one, in a fraction of the time.
        rows_per_pass: Gradient checkpointing, for large models: most rows in a pass of the language
            model. The activations of one pass at a time are in memory, and the backward pass
            computes them again. ``None``: those of all rows are kept.
        seed: Seed of the network's initialisation and of the sampled rephrases and locality
            prompts.
        checkpoint: File with trained parameters: a Lightning checkpoint or a file from
            :meth:`save_weights`. The edited layers and the network's sizes then come from the file.
    """

    needs_fit: ClassVar[bool] = True
    sequential: ClassVar[bool] = False
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")
    stacks: ClassVar[tuple[Stack, ...]] = ("encoder", "decoder")
    structure: ClassVar[tuple[str, ...]] = ()
    """Arguments that define the network's architecture; a checkpoint restores them."""

    def __init__(
        self,
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
        super().__init__()
        if rows_per_pass is not None and rows_per_pass < 1:
            raise ValueError(f"rows_per_pass is 1 or more, or null for all, got {rows_per_pass}")
        if stack not in get_args(StackChoice):
            raise ValueError(f"stack is both, encoder or decoder, got {stack!r}")
        self.layers = layers
        self.stack = stack
        self.modules_to_edit = modules
        self.lr = lr
        self.decay_steps = decay_steps
        self.c_edit = c_edit
        self.c_loc = c_loc
        self.own_probes = own_probes
        self.other_facts = other_facts
        self.any_wording = any_wording
        self.any_target = any_target
        self.together = together
        self.rows_per_pass = rows_per_pass
        self.seed = seed
        self.checkpoint = checkpoint
        self.weights: tuple[Weight, ...] = ()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._trained_on: dict[str, Any] = {}
        self.register_buffer("trained_batches", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def build(self) -> None:
        """Build the hypernetwork for the bound model; :attr:`weights` are the edited weights."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return Adam's parameter groups; a group may have its own learning rate."""
        return [{"params": list(self.parameters())}]

    def edited_modules(self) -> list[str]:
        """Return the dotted names of the edited linear layers, in a fixed order."""
        if self.modules_to_edit is not None:
            return self.modules_to_edit
        return [name for block in self.edited_blocks() for name in (*block.mlp_up, block.mlp_down)]

    def edited_blocks(self) -> list[BlockView]:
        """Return the edited blocks, the encoder's first.

        Raises:
            ArchitectureError: If a stack, or a block of a stack, is not there.
        """
        default = self.default_sites(self.view)
        chosen = chosen_stacks(self.view, self.stack)
        layers = {one: default[one] if self.layers is None else self.layers for one in chosen}
        return site_blocks(self.view, layers)

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: the last three as in MEND; below six blocks, the last half."""
        return list(range(num_blocks - max(1, min(3, num_blocks // 2)), num_blocks))

    @property
    def is_trained(self) -> bool:
        """Whether the network has had a training step or comes from a checkpoint."""
        return bool(self.trained_batches > 0)

    def on_bind(self) -> None:
        """Build the network for the bound model, or check that the existing one fits.

        Raises:
            ArchitectureError: If a trained network, or the checkpoint, is for weights that the
                model does not have.
            CheckpointError: If the checkpoint cannot be read or belongs to another editor.
        """
        stored = None
        if self.checkpoint is not None and not self._shapes:
            stored = EditorCheckpoint.read(Path(self.checkpoint))
            self._follow(stored)
        weights = tuple(weight(self.language_model, f"{m}.weight") for m in self.edited_modules())
        shapes = {w.name: w.shape for w in weights}
        trained_for = self._shapes if self.is_trained else stored.shapes if stored else shapes
        if wrong := [name for name, shape in shapes.items() if trained_for.get(name) != shape]:
            raise ArchitectureError(
                f"{type(self).__name__} was trained to edit {wrong[0]} of shape "
                f"{trained_for.get(wrong[0])}, but the bound model's is {shapes[wrong[0]]}; bind "
                "it to the model it was trained on, or train a new one with `lightning-edit fit`"
            )
        self.weights = weights
        self.source = MetaBatchSampler(
            self.prompts,
            self.own_probes,
            self.other_facts,
            self.any_wording,
            self.together,
            self.any_target,
        )
        self._compare_language_model()
        if shapes == self._shapes:
            return
        self._build_for(shapes)
        if stored is not None:
            stored.load_into(self)

    def _build_for(self, shapes: dict[str, tuple[int, ...]]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.build()
        self._shapes = shapes

    def _follow(self, stored: EditorCheckpoint) -> None:
        """Take the network's sizes and the edited weights from a checkpoint."""
        stored.restore_arguments(self, self.structure)
        self.modules_to_edit = list(stored.modules)
        self._trained_on = dict(stored.language_model)

    def _compare_language_model(self) -> None:
        """Warn if the bound language model is not the one that the network was trained on."""
        if not self._trained_on or self._bound is None:
            return
        bound = describe_language_model(self.language_model, self.prompts)
        if found := differences(self._trained_on, bound):
            log.warning(
                "%s was trained on another language model: %s; its edits fit the one it was "
                "trained on, so bind that one or train a new editor",
                type(self).__name__,
                found,
            )

    def describe(self) -> EditorCheckpoint:
        """Return the editor as a checkpoint: parameters, and arguments to rebuild the network."""
        arguments = {name: getattr(self, name) for name in self.structure}
        return EditorCheckpoint(
            type(self).__name__, self._shapes, arguments, self.state_dict(), self._trained_on
        )

    def renamed_arguments(self) -> dict[str, Any]:
        """Return the argument ``modules``, whose name an ``nn.Module`` has taken."""
        return {"modules": self.modules_to_edit}

    def save_weights(self, path: str | Path) -> None:
        """Save the trained parameters as safetensors, for the argument ``checkpoint``.

        Args:
            path: File to write, ending in ``.safetensors``.
        """
        self.describe().write(Path(path))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the network's header (edited weights, arguments) to a Lightning checkpoint."""
        checkpoint[EditorCheckpoint.KEY] = self.describe().header()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network of a Lightning checkpoint, if there is none yet.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            CheckpointError: If it holds no trained editor, or one of another class.
        """
        stored = EditorCheckpoint.of(checkpoint, "the checkpoint")
        if self._shapes:
            self._trained_on = dict(stored.language_model)
            self._compare_language_model()
            return
        self._follow(stored)
        self.weights = stored.weights()
        self._build_for(dict(stored.shapes))

    @torch.no_grad()
    def edit(self, batch: EditBatch) -> Delta:
        """Predict the update of a batch: one forward and backward pass, no optimisation."""
        self._warn_untrained()
        return self.propose(batch)

    @torch.no_grad()
    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Predict one independent update per request."""
        self._warn_untrained()
        return self.propose_each(batch)

    def _warn_untrained(self) -> None:
        if not self.is_trained:
            log.warning(
                "%s is not trained, so its edit is a tiny step along the gradient and changes next "
                "to nothing; train it with `lightning-edit fit`, or give `checkpoint`",
                type(self).__name__,
            )

    def on_fit_start(self) -> None:
        """Move the language model to the device and put it in eval mode (no dropout)."""
        super().on_fit_start()
        self.language_model.eval()
        self._trained_on = describe_language_model(self.language_model, self.prompts)

    def on_validation_start(self) -> None:
        """Put the language model in eval mode, and warn in ``validate`` of an untrained editor."""
        super().on_validation_start()
        self.language_model.eval()
        if self.trainer.validating:
            self._warn_untrained()

    def on_test_start(self) -> None:
        """Put the language model in eval mode; warn if the editor is not trained."""
        super().on_test_start()
        self.language_model.eval()
        self._warn_untrained()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam, with a linear learning-rate decay if :attr:`decay_steps` is set."""
        optimizer = torch.optim.Adam(self.parameter_groups(), lr=self.lr)
        if self.decay_steps is None:
            return optimizer
        line = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": line, "interval": "step"}}

    def collate_requests(self, stage: str, requests: Sequence[EditRequest]) -> MetaBatchCollate:
        """Return the collate function of a loader of this editor.

        Args:
            stage: ``train``, ``val`` or ``test``.
            requests: All requests of the loader; they provide the other facts.
        """
        return MetaBatchCollate(self.source, stage, requests, self.seed)
