"""Constraints of a training loss: Lagrange multipliers by dual ascent, margins that shrink."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Constraint(nn.Module):
    """One constraint ``value <= margin`` of a training loss, with its multiplier.

    Multiplier and margin are part of the state dict, so that a resumed training is exact.

    Args:
        margin: Margin at the start.
        floor: Smallest margin.
    """

    margin: Tensor

    def __init__(self, margin: float, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.alpha = nn.Parameter(torch.ones(()))
        self.register_buffer("margin", torch.tensor(margin))

    def forward(self, value: Tensor) -> Tensor:
        """Return the constraint's term of the Lagrangian.

        Args:
            value: What is to stay below the margin.
        """
        return self.alpha * (value - self.margin)

    def flip(self) -> None:
        """Turn the multiplier's gradient around: it ascends where the loss descends."""
        if self.alpha.grad is not None:
            self.alpha.grad.neg_()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multiplier from falling below zero."""
        self.alpha.clamp_(min=0)

    def anneal(self, factor: float) -> None:
        """Shrink the margin.

        Args:
            factor: What it is multiplied by.
        """
        self.margin.mul_(factor).clamp_(min=self.floor)


class Lagrangian(nn.ModuleDict):
    """Constraints by name.

    Args:
        constraints: The constraints.
    """

    def __init__(self, constraints: Mapping[str, Constraint]) -> None:
        super().__init__(dict(constraints))

    def term(self, name: str, value: Tensor) -> Tensor:
        """Return a constraint's term; 0 where there is no such constraint.

        Args:
            name: Name of the constraint.
            value: What it bounds.
        """
        return self[name](value) if name in self else value.new_zeros(())

    def before_step(self) -> None:
        """Turn the gradients of all multipliers around."""
        for one in self.values():
            one.flip()  # type: ignore[operator]  # all are constraints

    def after_step(self) -> None:
        """Keep all multipliers from falling below zero."""
        for one in self.values():
            one.clamp()  # type: ignore[operator]

    def anneal(self, factor: float) -> None:
        """Shrink all margins.

        Args:
            factor: What they are multiplied by.
        """
        for one in self.values():
            one.anneal(factor)  # type: ignore[operator]

    def state(self) -> dict[str, Tensor]:
        """Return multipliers and margins by name, for the log."""
        found: dict[str, Tensor] = {}
        for name, one in self.items():
            assert isinstance(one, Constraint)  # nothing else is put in
            found |= {f"alpha_{name}": one.alpha, f"margin_{name}": one.margin}
        return found


def centred_rmsprop(parameters: list[nn.Parameter], lr: float) -> torch.optim.RMSprop:
    """Return RMSprop that divides by the standard deviation of gradients (centred).

    Args:
        parameters: The parameters.
        lr: Learning rate.
    """
    return torch.optim.RMSprop(parameters, lr=lr, centered=True)
