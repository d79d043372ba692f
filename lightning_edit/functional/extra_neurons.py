"""Neurons beside a feed-forward network: T-Patcher's patch and CaliNET's calibration block.

Axis names: ``d`` -- hidden width; ``n`` -- extra neurons; ``a`` -- positions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def initial_keys(hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return keys on which hidden states have a pre-activation of one, h/‖h‖² (T-Patcher).

    Args:
        hidden: Hidden states that enter the feed-forward network, one per neuron.
    """
    return hidden / hidden.square().sum(-1, keepdim=True)


def pre_activations(
    hidden: Float[Tensor, "... d"], keys: Float[Tensor, "n d"], bias: Float[Tensor, " n"]
) -> Float[Tensor, "... n"]:
    """Return the pre-activations K h + b of extra neurons.

    Args:
        hidden: Hidden states that enter the feed-forward network.
        keys: K.
        bias: b.
    """
    return torch.nn.functional.linear(hidden, keys, bias)


def patch_output(
    hidden: Float[Tensor, "... d"],
    keys: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"],
    values: Float[Tensor, "d n"],
    activation: Activation,
) -> Float[Tensor, "... d"]:
    """Return what a patch adds to a feed-forward network's output, V·act(K h + b) (T-Patcher).

    Args:
        hidden: Hidden states that enter the network.
        keys: K.
        bias: b.
        values: V, one column per neuron.
        activation: The network's activation function.
    """
    return torch.nn.functional.linear(activation(pre_activations(hidden, keys, bias)), values)


def calibration_output(
    hidden: Float[Tensor, "... d"],
    read: Float[Tensor, "n d"],
    write: Float[Tensor, "d n"],
    gate: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "... d"]:
    """Return what a calibration block adds to a feed-forward network's output (CaliNET).

    Plain: W_out·ReLU(W_in h). With a gate: W_out·(GELU(W_gate h) ⊙ W_in h), the tanh form of GELU,
    as in T5 v1.1.

    Args:
        hidden: Hidden states that enter the network.
        read: W_in.
        write: W_out.
        gate: W_gate.
    """
    functional = torch.nn.functional
    inner = functional.linear(hidden, read)
    if gate is None:
        inner = functional.relu(inner)
    else:
        inner = functional.gelu(functional.linear(hidden, gate), approximate="tanh") * inner
    return functional.linear(inner, write)
