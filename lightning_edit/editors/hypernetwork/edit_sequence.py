"""Sequences of edits in training: the model keeps its edits, and each step is rewarded (RLEdit).

Axis names: ``d_in``/``d_out`` -- an edited weight is (d_out, d_in).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_edit.editors.hypernetwork.edited_readers import (
    reader_of,
    shifted_parameters,
    written_together,
)
from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.outer_loss import Reader
from lightning_edit.editors.hypernetwork.solving import SolvingHypernetwork

LocalityReference = Literal["previous", "original"]
LocalityBackward = Literal["edited", "unedited"]
NormTerm = Literal["gradient", "constant"]


@dataclass(frozen=True)
class Rewards:
    """What the reward of a step is made of; see :class:`~lightning_edit.RLEdit`.

    Args:
        decay: Factor of each further step back.
        c_norm: Weight of the squared norm of a step's update.
        norm_term: Whether that norm has a gradient.
        locality_reference: Whose answers are to be kept.
        locality_backward: Weights in the backward pass of the locality loss.
    """

    decay: float
    c_norm: float
    norm_term: NormTerm
    locality_reference: LocalityReference
    locality_backward: LocalityBackward


@dataclass
class EditSequence:
    """Sequence of edits in training: the updates so far, and the gradient of what came of them.

    Args:
        editor: The editor.
        rewards: What its reward is made of.
        totals: By parameter name, the sum of the updates so far, in float64.
        parameters: The edited weights; ``None`` before the first edit.
        gradients: Gradient so far, by the editor's parameters.
        terms: Sums of the terms of the loss.
    """

    editor: SolvingHypernetwork
    rewards: Rewards
    totals: dict[str, Tensor]
    gradients: list[Tensor]
    parameters: dict[str, Tensor] | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, editor: SolvingHypernetwork, rewards: Rewards) -> "EditSequence":
        """Start a sequence on the unedited model.

        Args:
            editor: The editor.
            rewards: What its reward is made of.
        """
        totals = {
            handle.name: torch.zeros(handle.shape, dtype=torch.float64, device=handle.device)
            for handle in editor.weights
        }
        return cls(editor, rewards, totals, [torch.zeros_like(p) for p in editor.parameters()])

    def keep(self, updates: Mapping[str, Tensor]) -> None:
        """Add a step's updates to the edits in force."""
        self.totals = {
            name: total + updates[name].to(total.device) for name, total in self.totals.items()
        }
        self.parameters = shifted_parameters(self.editor.weights, self.totals)

    def advance(self, step: MetaBatch, past: Sequence[MetaBatch]) -> None:
        """Make a step: edit, score current and past edits, and add the gradient.

        Args:
            step: The step's edits.
            past: The batches that are scored, the current one first.
        """
        editor, rewards, before = self.editor, self.rewards, self.parameters
        tokens = editor.read(step.inner, before)
        with editor.full_precision():
            editor.update_norms(tokens.of_all_processes())
            solved = editor.solve(tokens, None)
        updates = {name: one.dense() for name, (one,) in solved.items()}
        self.keep(updates)
        by_weights = self._outer_gradients(past, before)
        with editor.full_precision():
            by_shifts = {}
            for handle in editor.weights:
                (one,) = solved[handle.name]
                gradient = by_weights[handle.name]
                oriented = gradient.mT if handle.transposed else gradient
                if rewards.norm_term == "gradient":
                    oriented = oriented + 2 * rewards.c_norm * updates[handle.name].to(oriented)
                by_shifts[handle.name] = [one.gradient_of_shifts(oriented.to(editor.device))]
            found = editor.network_gradients(tokens, solved, by_shifts, None)
        for place, gradient in enumerate(found):
            self.gradients[place] += gradient
        norm = sum(float(update.square().sum()) for update in updates.values())
        self._add_term("loss", self.terms["edit_nll"].new_tensor(rewards.c_norm * norm))
        self._add_term("update_norm2", self.terms["edit_nll"].new_tensor(norm))

    def _outer_gradients(
        self, past: Sequence[MetaBatch], before: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return the gradient by the edited weights, one batch after another."""
        editor, rewards = self.editor, self.rewards
        model = editor.language_model
        read, leaves = written_together(model, editor.weights, self.totals)
        kept = before if rewards.locality_reference == "previous" else None
        reference: Reader = reader_of(model, kept)
        unedit, redo = self._swap(leaves, before)
        total: dict[str, Tensor] = {}
        for age, batch in enumerate(past):
            terms, found = editor.outer_loss("own", rewards.decay**age).gradients(
                editor.learnt(batch.outer),
                editor.learnt(batch.locality),
                read,
                reference,
                leaves,
                editor.rows,
                model.device,
                unedit,
                redo,
            )
            total = {n: total[n] + g if total else g for n, g in found.items()}
            self._add_term("loss", terms["loss"])
            if age == 0:
                self._add_term("edit_nll", terms["edit_nll"])
                self._add_term("locality_kl", terms["locality_kl"])
        return total

    def _swap(
        self, leaves: dict[str, Tensor], before: dict[str, Tensor] | None
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return what puts the weights before the step in place of the edited ones, and back."""
        if self.rewards.locality_backward == "edited":
            return (lambda: None), (lambda: None)
        edited = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        plain = before or {h.name: h.raw().detach() for h in self.editor.weights}

        def put(values: dict[str, Tensor]) -> None:
            # Through `data`, so that autograd does not notice, as in the authors' code.
            for name, leaf in leaves.items():
                leaf.data.copy_(values[name])

        return (lambda: put(plain)), (lambda: put(edited))

    def _add_term(self, name: str, value: Tensor) -> None:
        before = self.terms.get(name)
        self.terms[name] = value.detach() if before is None else before + value.detach()


def clip_together(gradients: Sequence[Tensor], most: float) -> None:
    """Clip the norm of all gradients together, in place.

    Args:
        gradients: Gradients of all parameters.
        most: Largest norm.
    """
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    share = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    for gradient in gradients:
        gradient.mul_(share)
