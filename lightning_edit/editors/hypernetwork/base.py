"""Editors that are trained: a network learns what one gradient step should have been.

A subclass says what its network is (:meth:`HypernetworkEditor.build`) and what it proposes for a
batch (:meth:`HypernetworkEditor.propose`, differentiable); training, validation, checkpoints and
editing are here. Axis names: ``a`` -- answer tokens; ``b`` -- rows, a prompt with its answer.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_edit.editors.base import Editor
from lightning_edit.editors.hypernetwork.checkpoint import EditorCheckpoint
from lightning_edit.editors.hypernetwork.functional_weights import (
    patched_parameters,
    stacked_factors,
)
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatchSampler
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.functional.hypernet import drift_kl
from lightning_edit.functional.measures import mean
from lightning_edit.inference.answers import (
    AnswerRow,
    AnswerRows,
    answer_logits,
    answer_logits_each,
)
from lightning_edit.models.weights import Weight, weight
from lightning_edit.types import EditBatch, EditRequest

log = logging.getLogger(__name__)


class HypernetworkEditor(Editor, family=True):
    """Family of editors with a network that is trained to edit one language model.

    A batch of the training loader holds the edits of one step. From each request come the edit
    itself, one of its rephrases on which the edited model is judged, and locality prompts: its own
    probes that are to stay unchanged, and other requests' prompts with their old answers.

    Args:
        layers: Blocks to edit; ``None``: :meth:`default_layers`.
        modules: Dotted names of the linear layers to edit, in place of ``layers``.
        lr: Adam's learning rate.
        decay_steps: Optimiser steps over which learning rates fall to zero on a straight line;
            ``None``: they stay.
        c_edit: Weight of the new answers' negative log-likelihood.
        c_loc: Weight of the divergence on locality prompts.
        own_probes: Locality prompts taken from each request's own probes in a training step.
        other_facts: Locality prompts taken from other requests in a training step.
        any_wording: Let any wording of a request be the edit of a training step, and another one
            its rephrase: more variety than the paper's fixed edit prompt.
        together: Write the edits of a batch as one update, to train for batches of edits. ``False``
            writes each alone, all side by side: what ``accumulate_grad_batches`` over batches of
            one gives, in a fraction of the time.
        seed: Seed of the network's start and of the choice of rephrases and locality prompts.
        checkpoint: File with trained parameters: a Lightning checkpoint or what
            :meth:`save_weights` wrote. What it edits and the sizes of its network then come from
            the file.
    """

    needs_fit: ClassVar[bool] = True
    sequential: ClassVar[bool] = False
    structure: ClassVar[tuple[str, ...]] = ()
    """Names of arguments that shape the network; a checkpoint restores them."""

    trained_batches: Tensor

    def __init__(
        self,
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
        super().__init__()
        self.layers = layers
        self.modules_to_edit = modules
        self.lr = lr
        self.decay_steps = decay_steps
        self.c_edit = c_edit
        self.c_loc = c_loc
        self.own_probes = own_probes
        self.other_facts = other_facts
        self.any_wording = any_wording
        self.together = together
        self.seed = seed
        self.checkpoint = checkpoint
        self.weights: tuple[Weight, ...] = ()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.register_buffer("trained_batches", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def build(self) -> None:
        """Create the network for the bound model; :attr:`weights` are the weights it edits."""

    @abstractmethod
    def propose(self, batch: EditBatch, learn: bool = False) -> Delta:
        """Compute the update of a batch, differentiable in the network's parameters.

        Args:
            batch: Requests and their token ids.
            learn: Whether this is a training step, in which running statistics take the batch in.

        Returns:
            The update; its tensors may carry a graph.
        """

    def propose_each(self, batch: EditBatch, learn: bool = False) -> list[Delta]:
        """As :meth:`propose`, for every request as if it were alone."""
        return [self.propose(part, learn) for part in batch.split()]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return Adam's groups of parameters; a group may have a learning rate of its own."""
        return [{"params": list(self.parameters())}]

    def edited_modules(self) -> list[str]:
        """Return the dotted names of the linear layers that are edited, in a fixed order."""
        if self.modules_to_edit is not None:
            return self.modules_to_edit
        layers = self.default_layers(self.view.num_blocks) if self.layers is None else self.layers
        blocks = [self.view.block(layer) for layer in layers]
        return [name for block in blocks for name in (*block.mlp_up, block.mlp_down)]

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """The last three blocks, as in MEND and its ports; of less than six the last half."""
        return list(range(num_blocks - max(1, min(3, num_blocks // 2)), num_blocks))

    @property
    def is_trained(self) -> bool:
        """Whether the network has seen a training step or came from a checkpoint."""
        return bool(self.trained_batches > 0)

    def on_bind(self) -> None:
        """Create the network for the bound model, or check that the one there is fits.

        Raises:
            ArchitectureError: If a trained network, or the checkpoint, is for weights that the
                model does not have.
            CheckpointError: If the checkpoint cannot be read or is of another editor.
        """
        stored = None
        if self.checkpoint is not None and not self._shapes:
            stored = EditorCheckpoint.read(Path(self.checkpoint))
            stored.restore_arguments(self, self.structure)
            self.modules_to_edit = list(stored.modules)
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
            self.tokenizer, self.own_probes, self.other_facts, self.any_wording
        )
        if shapes == self._shapes:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.build()
        self._shapes = shapes
        if stored is not None:
            stored.load_into(self)

    def describe(self) -> EditorCheckpoint:
        """Return the editor's parameters with what is needed to build the network again."""
        arguments = {name: getattr(self, name) for name in self.structure}
        return EditorCheckpoint(type(self).__name__, self._shapes, arguments, self.state_dict())

    def save_weights(self, path: str | Path) -> None:
        """Write the trained parameters as safetensors, for ``checkpoint``.

        Args:
            path: File to write, ending in ``.safetensors``.
        """
        self.describe().write(Path(path))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note in a Lightning checkpoint what the network was built for."""
        checkpoint[EditorCheckpoint.KEY] = self.describe().header()

    @torch.no_grad()
    def edit(self, batch: EditBatch) -> Delta:
        """Compute the update of a batch: one forward and backward pass, and no optimisation."""
        self._warn_untrained()
        return self.propose(batch)

    @torch.no_grad()
    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute one update per request, each as if it were alone."""
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
        """Put the language model on the device, without dropout."""
        super().on_fit_start()
        self.language_model.eval()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, with :attr:`decay_steps` under a schedule."""
        optimizer = torch.optim.Adam(self.parameter_groups(), lr=self.lr)
        if self.decay_steps is None:
            return optimizer
        line = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": line, "interval": "step"}}

    def training_step(self, requests: list[EditRequest], batch_idx: int) -> Tensor | None:
        """Edit, and judge the edited model on rephrases and on what must stay.

        Args:
            requests: Edits of one step.
            batch_idx: Number of the batch in its epoch; chooses rephrases and locality prompts.

        Returns:
            The loss; ``None`` (no update) where it is not finite.
        """
        rng = Random(f"{self.seed}/{self.current_epoch}/{batch_idx}")
        examples = self.source.draw(requests, rng, self.trainer.train_dataloader)
        batch, after = self.logits_after(examples.inner, examples.outer + examples.locality, True)
        outer = batch.rows < len(examples.outer)
        terms = self.terms(after[outer], batch.targets[outer], after[~outer], examples.locality)
        if not torch.isfinite(terms["loss"]):
            log.warning("step %d: the loss is not finite; the step is skipped", self.global_step)
            return None
        self.trained_batches += 1
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=True, batch_size=len(requests))
        return terms["loss"]

    def logits_after(
        self, edits: EditBatch, rows: Sequence[tuple[int, AnswerRow]], learn: bool = False
    ) -> tuple[AnswerRows, Float[Tensor, "a v"]]:
        """Return the logits of the edited model at the answers of some rows.

        Args:
            edits: The edits; written together or each alone, as :attr:`together` says.
            rows: Prompts and answers, each with the number of the edit it belongs to.
            learn: Whether this is a training step.

        Returns:
            The padded rows, and the logits with their graph.
        """
        batch = self.rows(rows)
        if self.together or len(edits) == 1:
            patched = patched_parameters(self.weights, self.propose(edits, learn))
            return batch, answer_logits(self.language_model, batch, patched)
        changes = stacked_factors(self.weights, self.propose_each(edits, learn))
        numbers = torch.tensor([number for number, _ in rows], device=batch.ids.device)
        return batch, answer_logits_each(self.language_model, batch, changes, numbers)

    def terms(
        self,
        outer: Float[Tensor, "a v"],
        targets: Int[Tensor, " a"],
        after: Float[Tensor, "a2 v"],
        locality: Sequence[tuple[int, AnswerRow]],
    ) -> dict[str, Tensor]:
        """Return the loss and its two terms, in nats.

        Args:
            outer: Logits of the edited model that are to predict ``targets``.
            targets: Tokens of the new answers.
            after: Logits of the edited model at the answers of the locality prompts.
            locality: Those prompts and answers; none leaves out the second term.

        Returns:
            ``loss``, ``edit_nll`` (mean over answer tokens) and ``locality_kl`` (likewise, KL of
            the unedited from the edited model).
        """
        nll = nn.functional.cross_entropy(outer.float(), targets)
        kl = drift_kl(self.base_logits(locality), after) if locality else nll.new_zeros(())
        return {"loss": self.c_edit * nll + self.c_loc * kl, "edit_nll": nll, "locality_kl": kl}

    @torch.no_grad()
    def base_logits(self, rows: Sequence[tuple[int, AnswerRow]]) -> Float[Tensor, "a v"]:
        """Return what the unedited model predicts at the answers of some rows."""
        return answer_logits(self.language_model, self.rows(rows))

    def rows(self, rows: Sequence[tuple[int, AnswerRow]]) -> AnswerRows:
        """Pad rows on the language model's device."""
        return AnswerRows.pad([row for _, row in rows], self.language_model.device)

    def validation_step(self, requests: list[EditRequest], batch_idx: int) -> None:
        """Score edits of held-out requests; see :meth:`evaluate`."""
        self.evaluate(requests, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, requests: list[EditRequest], batch_idx: int) -> None:
        """Score edits of the test requests; see :meth:`evaluate`."""
        self.evaluate(requests, batch_idx, "test", self.trainer.test_dataloaders)

    @torch.no_grad()
    def evaluate(
        self, requests: list[EditRequest], batch_idx: int, stage: str, loader: Any
    ) -> None:
        """Edit a batch and log the loss and teacher-forced scores on all its rephrases and probes.

        ``reliability/em@tf`` and ``generalization/em@tf``: every token of the new answer is the
        first choice, on the prompt and on the rephrases. ``locality/kept@tf``: share of a probe's
        answer tokens whose first choice is the unedited model's; without probes, of other requests'
        prompts.

        Args:
            requests: Edits of one batch.
            batch_idx: Number of the batch; chooses the other requests.
            stage: ``val`` or ``test``, the first part of the names.
            loader: Loader whose data set other requests are taken from.
        """
        rng = Random(f"{self.seed}/{stage}/{batch_idx}")
        examples = self.source.every(requests, rng, loader)
        encoded = enumerate(examples.inner.encoded)
        rewrites = tuple((edit, (e.prompt_ids, e.target_ids)) for edit, e in encoded)
        rows = rewrites + examples.outer + examples.locality
        batch, logits = self.logits_after(examples.inner, rows)
        right = batch.per_row((logits.argmax(-1) == batch.targets).float()) == 1
        first, last = len(rewrites), len(rewrites) + len(examples.outer)
        edits = [edit for edit, _ in rows]
        scores = {
            "reliability/em@tf": request_means(right[:first], edits[:first]),
            "generalization/em@tf": request_means(right[first:last], edits[first:last]),
        }
        held = batch.rows >= last
        if examples.locality:
            before = self.base_logits(examples.locality).argmax(-1)
            same = (logits[held].argmax(-1) == before).float()
            kept = self.rows(examples.locality).per_row(same)
            scores["locality/kept@tf"] = request_means(kept, edits[last:], examples.kinds)
        for name, values in scores.items():
            if values:
                self.log(f"{stage}/{name}", mean(values), prog_bar=True, batch_size=len(values))
        outer = (batch.rows >= first) & ~held if examples.outer else ~held
        terms = self.terms(logits[outer], batch.targets[outer], logits[held], examples.locality)
        for name, value in terms.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=len(requests))


def request_means(values: Tensor, edits: Sequence[int], kinds: Sequence[str] = ()) -> list[float]:
    """Average the scores of probes within a request: per kind, then over its kinds.

    The same definition as :func:`lightning_edit.metrics.request_means`, so that a score has one
    meaning in training, evaluation and results: a request with many probes counts as one.

    Args:
        values: One score a probe.
        edits: Number of the request of each probe.
        kinds: Kind of each probe; empty where all are of one kind.

    Returns:
        One mean per request that has a probe.
    """
    of_request: dict[int, dict[str, list[float]]] = {}
    for number, (value, edit) in enumerate(zip(values.tolist(), edits, strict=True)):
        kind = kinds[number] if kinds else ""
        of_request.setdefault(edit, {}).setdefault(kind, []).append(float(value))
    return [mean([mean(listed) for listed in found.values()]) for found in of_request.values()]
