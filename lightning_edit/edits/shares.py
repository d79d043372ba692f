r"""Shares of edits in a layer's output: what every request in force adds at a given input.

An update that is a sum over its requests, :math:`\Delta = \sum_i r_i (A^{-1} k_i)^\top`, adds
:math:`r_i (k_i^\top A^{-1} k_x)` at an input :math:`k_x` for its request i, and these shares sum to
:math:`\Delta k_x`. Any other update is one share: that of its whole commit, which is what an undo
of the commit takes away at this input.

Axis names: ``p`` -- inputs; ``c`` -- columns; ``d_in``/``d_out`` -- width of a layer's input and
output.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.edits.columns import LEFT_OUT, NO_REQUEST
from lightning_edit.edits.delta import Delta, Dense, LowRank
from lightning_edit.models.weights import weight

AttributedBy = Literal["columns", "undo"]
"""How a share was found: ``columns``: the request's own columns of the update; ``undo``: the whole
update of its commit."""


@dataclass(frozen=True)
class Share:
    """What one request, or one commit as a whole, adds to the output of one linear layer.

    Args:
        ids: The request, or all requests of the commit; empty for columns of no request (facts
            that SIR restores with its batch).
        by: How it was found.
        left: Left factor, (d_out, c), in float64; a bias: its update, (d_out, 1).
        right: Right factor, (c, d_in), in float64; ``None`` for a bias or a dense update.
        dense: The dense update, (d_out, d_in), in float64; ``None`` if it has factors.
        left_out: What takes the place of ``left`` when the layer is solved again without the
            request, at fixed targets of the others; ``None`` if that is not known.
    """

    ids: tuple[str, ...]
    by: AttributedBy
    left: Tensor | None = None
    right: Tensor | None = None
    dense: Tensor | None = None
    left_out: Tensor | None = None

    def resolved(self) -> "Share | None":
        """Return what the layer loses when it is solved again without the request.

        The others are then written differently, since they no longer have to make room for it, so
        these do not sum to the update. Targets of the others and the layers below are as they are.

        Returns:
            The share; ``None`` if it is not known, as for what was not solved with others by
            columns.
        """
        if self.by != "columns" or not self.ids or self.left_out is None:
            return None
        return replace(self, left=self.left_out, left_out=None)

    def at(self, keys: Float[Tensor, "p d_in"]) -> Float[Tensor, "p d_out"]:
        r"""Return what it adds to the layer's output at each input, :math:`\Delta_i k`.

        Args:
            keys: Inputs of the layer.
        """
        if self.dense is not None:
            return keys.double() @ self.dense.mT
        assert self.left is not None
        return self._coefficients(keys) @ self.left.mT

    def along(
        self, keys: Float[Tensor, "p d_in"], directions: Float[Tensor, "p d_out"]
    ) -> Float[Tensor, " p"]:
        r"""Return :math:`g^\top \Delta_i k` of each input with its direction g of the output.

        Args:
            keys: Inputs of the layer.
            directions: One direction for each, such as a gradient.
        """
        if self.dense is not None:
            return (self.at(keys) * directions.double()).sum(1)
        assert self.left is not None
        return (self._coefficients(keys) * (directions.double() @ self.left)).sum(1)

    def overlap(self, key: Float[Tensor, " d_in"]) -> float | None:
        r"""Return the key overlap :math:`k_i^\top A^{-1} k_x`, of several columns the largest.

        Args:
            key: Input of the layer.

        Returns:
            The overlap; ``None`` if the update has no columns of this request.
        """
        if self.by != "columns" or self.right is None or not len(self.right):
            return None
        found = self.right @ key.double()
        return float(found[found.abs().argmax()])

    def _coefficients(self, keys: Float[Tensor, "p d_in"]) -> Float[Tensor, "p c"]:
        if self.right is None:
            return keys.new_ones(len(keys), 1, dtype=torch.float64)
        return keys.double() @ self.right.mT


def shares_of(delta: Delta, name: str) -> Iterator[Share]:
    """Yield the shares of a commit in the update of one weight or bias; they sum to the update.

    Args:
        delta: The commit's delta.
        name: Parameter name of the weight or bias.
    """
    update = delta.weights[name]
    if isinstance(update, Dense):
        value = update.dense()
        if value.ndim == 1:
            yield Share(delta.request_ids, "undo", left=value[:, None])
        else:
            yield Share(delta.request_ids, "undo", dense=value)
        return
    left, right = update.left.double(), update.right.double()
    if name not in delta.columns:
        yield Share(delta.request_ids, "undo", left, right)
        return
    places: dict[int, list[int]] = {}
    for place, owner in enumerate(delta.columns[name]):
        places.setdefault(owner, []).append(place)
    for owner, chosen in places.items():
        ids = () if owner == NO_REQUEST else (delta.request_ids[owner],)
        without: Tensor | None = left[
            :, chosen
        ]  # a request that was solved alone leaves nothing behind
        if len(places) > 1:
            known = delta.history.get(LEFT_OUT + name)
            without = None if known is None else known.double().mT[:, chosen]
        yield Share(ids, "columns", left[:, chosen], right[chosen], left_out=without)


def linear_module(model: nn.Module, name: str) -> str | None:
    """Return the linear layer whose output a parameter acts on linearly; ``None`` if there is none.

    An embedding, a norm, or a weight that is tied to another one acts elsewhere.

    Args:
        model: The language model.
        name: Parameter name.
    """
    module, _, leaf = name.rpartition(".")
    linear = isinstance(model.get_submodule(module), nn.Linear | Conv1D)
    if not linear or leaf not in ("weight", "bias") or weight(model, name).tied_to:
        return None
    return module


def summed_by_request(delta: Delta) -> bool:
    """Return whether every update of a commit of several requests is a sum over them.

    Args:
        delta: The commit's delta.
    """
    updates = delta.weights.items()
    return all(isinstance(update, LowRank) and name in delta.columns for name, update in updates)
