"""How fine-tuning steps: Adam with a given rate, or length and direction are by rule."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lightning_edit.editors.gradient.master_copies import MasterCopies
from lightning_edit.editors.gradient.ordinary_inputs import OrdinaryInputs

#: Longest step by rule: what it changes in the trained layers' outputs on ordinary text, beside
#: what these are (root of the mean squares). Steps that learn are a third of it and less
#: on the embedded model, a tenth on a small GPT-2, a seventeenth on SmolLM2.
LONGEST = 0.1


class AdamDescent:
    """Adam, as in the authors' code.

    Args:
        copies: Master copies of the trained weights.
        lr: Learning rate.
        weight_decay: Weight decay.
    """

    def __init__(self, copies: MasterCopies, lr: float, weight_decay: float) -> None:
        self.copies = copies
        self.optimizer = torch.optim.Adam(copies.master, lr=lr, weight_decay=weight_decay)

    def take(self, gradients: Sequence[Tensor], excess: float) -> None:
        """Make a step.

        Args:
            gradients: Gradient of the loss by each copy.
            excess: How far the loss is above the least that it can be, which Adam does not ask.
        """
        for value, gradient in zip(self.copies.master, gradients, strict=True):
            value.grad = gradient
        self.optimizer.step()


class MeasuredDescent:
    r"""Steepest descent, measured by what a step changes on ordinary text.

    Each step takes the share ρ of the loss, to first order: along :math:`D = G C^{-1}` its length
    is :math:`\rho\,(\ell - \ell_{\min}) / \langle G, D \rangle`, Polyak's (Loizou et al.,
    Stochastic Polyak Step-size, arXiv 2002.10542). Where the loss hardly has a slope, a step is no
    longer than :data:`LONGEST`. No setting depends on the scale of weights or activations.

    Args:
        copies: Master copies of the trained weights.
        inputs: What their layers read on ordinary text.
        reach: ρ.
        weight_decay: Weight of half the squared norm of the weights, as in torch's optimisers.
    """

    def __init__(
        self, copies: MasterCopies, inputs: OrdinaryInputs, reach: float, weight_decay: float
    ) -> None:
        self.copies = copies
        self.inputs = inputs
        self.reach = reach
        self.weight_decay = weight_decay

    @torch.no_grad()
    def take(self, gradients: Sequence[Tensor], excess: float) -> None:
        """Make a step; without a gradient there is none.

        Args:
            gradients: Gradient of the loss by each copy.
            excess: How far the loss is above the least that it can be, in nats.
        """
        master, handles = self.copies.master, self.copies.handles
        full = [
            gradient.add(value, alpha=self.weight_decay) if self.weight_decay else gradient
            for gradient, value in zip(gradients, master, strict=True)
        ]
        # Gradients of a saturated model are so small that their squares vanish.
        largest = max(float(gradient.abs().max()) for gradient in full)
        if largest == 0:
            return
        full = [gradient / largest for gradient in full]
        along = [
            self.inputs.direction(handle.name, one)
            for handle, one in zip(handles, full, strict=True)
        ]
        slope = sum(float((g * d).sum()) for g, d in zip(full, along, strict=True))
        if slope == 0:
            return
        length = min(self.reach * excess / (largest * slope), self._longest() / sqrt(slope))
        for value, direction in zip(master, along, strict=True):
            value.sub_(direction, alpha=length)

    def _longest(self) -> float:
        """Return the longest step in the norm of its change on ordinary text."""
        pairs = zip(self.copies.handles, self.copies.master, strict=True)
        return LONGEST * sqrt(sum(self.inputs.size(handle.name, value) for handle, value in pairs))


Descent = AdamDescent | MeasuredDescent
