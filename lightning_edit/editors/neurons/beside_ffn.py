"""Branches beside feed-forward networks: they read what its up-projection reads, and add to it.

The hidden state is taken at the input of the up-projection and the branch's output is added to that
of the down-projection, since some models have no module around the two (OPT) or one whose output
includes the residual (BLOOM). A norm behind the down-projection (Gemma 2 and 3) acts on the sum.

Axis names: ``d`` -- hidden width.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_edit.editors.module_runtime import ModuleRuntime
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.functional.extra_neurons import Activation
from lightning_edit.inference.model_call import ModelCall
from lightning_edit.inference.module_adapter import ModuleAdapter
from lightning_edit.models.view import ModelView

Branch = Callable[[Tensor], Tensor]
"""From hidden states (..., d) to what is added to the network's output, (..., d)."""


class _Reader(ModuleAdapter):
    """Keeps what the up-projection reads until the down-projection has been called."""

    def __init__(self) -> None:
        self.hidden: dict[int, Tensor] = {}  # by thread, as two may ask one model

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        self.hidden[threading.get_ident()] = hidden
        return output


class _Writer(ModuleAdapter):
    """Adds a branch's output to that of the down-projection."""

    def __init__(self, reader: _Reader, branch: Branch) -> None:
        self.reader = reader
        self.branch = branch

    def act(self, hidden: Tensor, output: Tensor, call: ModelCall | None) -> Tensor:
        read = self.reader.hidden.pop(threading.get_ident())
        wide = torch.promote_types(output.dtype, torch.float32)
        added = self.branch(read.to(wide))
        return (output.to(wide) + added.to(output.device)).to(output.dtype)


def beside(view: ModelView, branches: Mapping[int, Branch]) -> dict[str, ModuleAdapter]:
    """Return the adapters that put branches beside the feed-forward networks of blocks.

    Args:
        view: The model's structure.
        branches: What is added, by block.
    """
    adapters: dict[str, ModuleAdapter] = {}
    for block, branch in branches.items():
        parts, reader = view.block(block), _Reader()
        adapters |= {parts.mlp_up[0]: reader, parts.mlp_down: _Writer(reader, branch)}
    return adapters


def total(branches: Iterable[Branch]) -> Branch:
    """Return the sum of branches, in their order.

    Args:
        branches: At least one.
    """
    listed = list(branches)

    def summed(hidden: Tensor) -> Tensor:
        added = listed[0](hidden)
        for branch in listed[1:]:
            added = added + branch(hidden)
        return added

    return summed


class BranchRuntime(ModuleRuntime):
    """Runtime of branches that the edits in force hold in their ``state``.

    Args:
        view: The model's structure.
        read: Makes the branches by block from the edits in force.

    Attributes:
        in_force: The edits whose branches are on the model.
        branches: Their branches, by block.
    """

    def __init__(
        self, view: ModelView, read: Callable[[Sequence[Delta]], Mapping[int, Branch]]
    ) -> None:
        super().__init__(view.model, self._beside)
        self.view = view
        self.read = read
        self.in_force: Sequence[Delta] = ()
        self.branches: Mapping[int, Branch] = {}
        self._read: Mapping[int, Branch] = {}

    def _beside(self, in_force: Sequence[Delta]) -> dict[str, ModuleAdapter]:
        return beside(self.view, self._read)

    def install(self, in_force: Sequence[Delta]) -> None:
        """Put the branches of these edits beside the networks, in place of those there.

        Args:
            in_force: Deltas, in the order of their commits; empty: nothing is left on the model.
        """
        listed = tuple(in_force)
        self._read = self.read(listed) if listed else {}
        super().install(listed)
        self.in_force, self.branches = listed, self._read


def ffn_input(view: ModelView, block: int) -> str:
    """Return the module whose input is what a block's feed-forward network reads.

    Args:
        view: The model's structure.
        block: Number of the block.
    """
    return view.block(block).mlp_up[0]


def activation_of(view: ModelView, block: int, name: str | None = None) -> Activation:
    """Return the activation function of a block's feed-forward network.

    Args:
        view: The model's structure.
        block: Number of the block.
        name: Another one, by its name in transformers (``relu``, ``gelu``, ``silu``).

    Raises:
        ArchitectureError: If the network has no module that is its activation function.
        ConfigError: If there is no function of that name.
    """
    if name is not None:
        return _by_name(name)
    parts = view.block(block)
    owner = view.model.get_submodule(parts.mlp_down.rpartition(".")[0])
    found = [child for child in owner.children() if _is_activation(child)]
    if len(found) != 1:
        listed = ", ".join(type(one).__name__ for one in found) or "none"
        raise ArchitectureError(
            f"{parts.name}: expected one activation function beside {parts.mlp_down}, got "
            f"{listed}; name one, such as activation='relu'"
        )
    return found[0]


def _by_name(name: str) -> Activation:
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ConfigError(f"activation: expected one of {', '.join(sorted(ACT2FN))}, got {name!r}")
    function: Activation = ACT2FN[name]
    return function


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module without weights bends single numbers: no dropout, no identity."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return False
    if isinstance(module, nn.Identity | nn.Dropout):
        return False
    points = torch.linspace(-2.0, 2.0, 5)
    try:
        with torch.no_grad():
            bent = module(points)
    except (TypeError, ValueError, RuntimeError):
        return False
    return isinstance(bent, Tensor) and bent.shape == points.shape and not bent.equal(points)
