"""T-Patcher's patch: extra neurons of a feed-forward network, and their training.

Axis names: ``n`` -- extra neurons; ``d`` -- hidden width; ``m`` -- hidden states in memory;
``a`` -- answer tokens; ``v`` -- vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_edit.functional.extra_neurons import (
    Activation,
    initial_keys,
    patch_output,
    pre_activations,
)
from lightning_edit.functional.patch_losses import (
    Margins,
    activation_loss,
    memory_loss,
)


class Neurons(NamedTuple):
    """Extra neurons, ready for use.

    Args:
        key: K.
        bias: b.
        value: V, one column per neuron.
    """

    key: Float[Tensor, "n d"]
    bias: Float[Tensor, " n"]
    value: Float[Tensor, "d n"]

    def state(self, module: str) -> dict[str, Tensor]:
        """Return the neurons as named tensors.

        Args:
            module: Name of the module that they add to.
        """
        return {f"{module}.{name}": value for name, value in self._asdict().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], module: str) -> "Neurons":
        """Read what :meth:`state` gave.

        Args:
            state: Named tensors.
            module: Name of the module that they add to.
        """
        return cls(*(state[f"{module}.{name}"] for name in cls._fields))

    @classmethod
    def joined(cls, parts: "list[Neurons]") -> "Neurons":
        """Return the neurons of several edits side by side.

        Args:
            parts: At least one.
        """
        key, bias, value = zip(*parts, strict=True)
        return cls(torch.cat(key), torch.cat(bias), torch.cat(value, dim=1))

    def branch(self, activation: Activation) -> Callable[[Tensor], Tensor]:
        """Return what the neurons add, as a function of hidden states.

        Args:
            activation: Activation function of the network.
        """
        placed: dict[tuple[torch.device, torch.dtype], Neurons] = {}

        def added(hidden: Tensor) -> Tensor:
            where = hidden.device, hidden.dtype
            if where not in placed:
                placed[where] = Neurons(*(one.to(*where) for one in self))
            return patch_output(hidden, *placed[where], activation)

        return added


class Patch(nn.Module):
    """Extra neurons in training: keys, biases, values and the values' scale.

    Args:
        hidden: The hidden state of each neuron, on which it must fire.
        scale: Start of the values' scale S; V = V_raw ⊙ S.
        generator: Draws V_raw from a normal distribution.
    """

    def __init__(
        self, hidden: Float[Tensor, "n d"], scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        drawn = torch.randn(hidden.shape[1], len(hidden), generator=generator)
        self.key = nn.Parameter(initial_keys(hidden))
        self.bias = nn.Parameter(hidden.new_zeros(len(hidden)))
        self.raw = nn.Parameter(drawn.to(hidden))
        self.scale = nn.Parameter(torch.full_like(self.raw, scale))

    def added(
        self, hidden: Float[Tensor, "... d"], activation: Activation
    ) -> Float[Tensor, "... d"]:
        """Return what the neurons add at hidden states.

        Args:
            hidden: The states.
            activation: Activation function of the network.
        """
        return patch_output(hidden, self.key, self.bias, self.raw * self.scale, activation)

    def neurons(self) -> Neurons:
        """Return the trained neurons, with the scale multiplied into the values."""
        value = (self.raw * self.scale).detach()
        return Neurons(self.key.detach().clone(), self.bias.detach().clone(), value)


@dataclass(frozen=True)
class PatchObjective:
    """Weights and sizes of the activation loss and the memory loss.

    Args:
        margins: Their margins.
        activation_weight: c_a.
        memory_weight: c_m.
        activation_worst: Values in the mean of the activation loss.
        memory_worst: Values in each mean of the memory loss.
        copies: Copies of the edit in the authors' batch.
    """

    margins: Margins
    activation_weight: float = 1.0
    memory_weight: float = 10.0
    activation_worst: int = 5
    memory_worst: int = 1000
    copies: int = 8

    def parts(
        self, patch: Patch, own: Float[Tensor, "n d"], memory: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the activation loss and the memory loss, without their weights.

        Args:
            patch: The neurons.
            own: The hidden state of each.
            memory: Hidden states on which they must be silent.
        """
        fires = ((own * patch.key).sum(1) + patch.bias)[None]
        silent = pre_activations(memory, patch.key, patch.bias)
        activation = activation_loss(fires, self.margins.fire, self.activation_worst, self.copies)
        # Without memory the second loss is nothing, not the mean of an empty list.
        if not len(memory):
            return activation, activation.new_zeros(())
        return activation, memory_loss(fires, silent, self.margins, self.memory_worst, self.copies)


@dataclass(frozen=True)
class PatchSchedule:
    """Optimiser and stopping rule, as in the authors' code.

    Args:
        steps: Most optimiser steps.
        lr: Adam's learning rate.
        weight_decay: Adam's weight decay, on keys, biases, values and scale.
        clip: Largest norm of all gradients together.
        check_every: Steps between two checks of the stopping rule.
        earliest: Step from which training may stop.
        improvement: A memory loss that falls by less has stopped to fall.
    """

    steps: int = 2000
    lr: float = 1e-2
    weight_decay: float = 0.01
    clip: float = 5.0
    check_every: int = 25
    earliest: int = 100
    improvement: float = 1e-3

    def optimizer(self, patch: Patch) -> torch.optim.Optimizer:
        """Return Adam with L2 weight decay.

        Args:
            patch: The neurons.
        """
        return torch.optim.Adam(patch.parameters(), lr=self.lr, weight_decay=self.weight_decay)


#: What :func:`train_patch` returns, by name.
FOUND = ("steps", "edit_loss", "activation_loss", "memory_loss", "right")

EditLoss = Callable[[Patch], tuple[Float[Tensor, ""], bool]]
"""The edit loss with a patch in place, and whether the greedy answer is the target."""


def patch_step(
    patch: Patch, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], clip: float
) -> float:
    """Make one optimiser step with clipped gradients.

    Args:
        patch: The neurons.
        optimizer: Their optimiser.
        loss: The whole loss.
        clip: Largest norm of all gradients together.

    Returns:
        The norm before clipping.
    """
    listed = list(patch.parameters())
    for parameter, gradient in zip(listed, torch.autograd.grad(loss, listed), strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(listed, clip)
    optimizer.step()
    return float(norm)


def train_patch(
    patch: Patch,
    own: Float[Tensor, "n d"],
    memory: Float[Tensor, "m d"],
    held_out: Float[Tensor, "m2 d"],
    edit_loss: EditLoss,
    objective: PatchObjective,
    schedule: PatchSchedule,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train the neurons of one edit; the last weights are kept, whatever came of them.

    Training stops when the greedy answer is the target and the loss on the held-out memory falls no
    more. The learning rate is halved when the whole loss on that memory reaches a plateau.

    Args:
        patch: The neurons, changed in place.
        own: The hidden state of each.
        memory: Hidden states on which they must be silent.
        held_out: Others, for the stopping rule.
        edit_loss: The edit loss.
        objective: The other losses.
        schedule: Optimiser and stopping rule.
        progress: Told the steps done and the most there can be.

    Returns:
        The number of steps, the losses after them and whether the greedy answer was the target.
    """
    optimizer = schedule.optimizer(patch)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.05
    )
    lowest, stalled = float("inf"), False
    found: dict[str, Any] = {}
    for step in range(1, schedule.steps + 1):
        progress(step - 1, schedule.steps)
        edit, _ = edit_loss(patch)
        activation, silence = objective.parts(patch, own, memory)
        loss = edit + objective.activation_weight * activation + objective.memory_weight * silence
        patch_step(patch, optimizer, loss, schedule.clip)
        if step % schedule.check_every and step < schedule.steps:
            continue
        with torch.no_grad():
            edit, right = edit_loss(patch)
            activation, silence = objective.parts(patch, own, held_out)
        memory_now = float(silence)
        stalled = memory_now > lowest - schedule.improvement
        lowest = min(lowest, memory_now)
        values = (step, float(edit), float(activation), memory_now, right)
        found = dict(zip(FOUND, values, strict=True))
        if step >= schedule.earliest and right and stalled:
            break
        plateau.step(
            float(edit)
            + objective.activation_weight * float(activation)
            + objective.memory_weight * memory_now
        )
    progress(schedule.steps, schedule.steps)
    return found


def wrong_places(
    logits: Float[Tensor, "a v"], targets: Int[Tensor, " a"], most: int
) -> Int[Tensor, " n"]:
    """Return the first answer tokens that are not the model's first choice.

    Args:
        logits: Logits of the answer tokens, teacher forced.
        targets: The answer tokens.
        most: Most places that are returned.
    """
    return (logits.argmax(-1) != targets).nonzero().squeeze(1)[:most]
