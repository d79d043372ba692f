"""D4S: Huang et al., Reasons and Solutions for the Decline after Editing, NeurIPS 2024, 2410.23843.

Axis names: ``n`` -- edits; ``d`` -- hidden width; ``f`` -- width of a key.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.target_search import Targets
from lightning_edit.edits.correction import host_update
from lightning_edit.edits.delta import Delta, Dense, WeightUpdate
from lightning_edit.functional.solve import Preserved, Solution, least_squares
from lightning_edit.inference.tokenized_text import TokenizedText


class D4S(MultiLayerEditor):
    r"""Solve for all edits so far together, from two sums whose size never grows.

    The total update of a layer is :math:`\frac{\sum R K^\top}{|L| - i} (\lambda C + \sum K
    K^\top)^{-1}` over every edit in force ("dump for sequence"). Targets are searched on the
    original weights, and R, the distance there, is not measured again.

    Args:
        moment_weight: λ, as in MEMIT; ``None``: the width of a key.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        A delta is the difference of two totals; unless something was undone it has the rank of its
        batch. After an undo the next edit solves for the rest without the undone one, which makes
        its update dense. Since R is not measured again, several layers together write more than
        the distance: 2.3 times for five layers, before the ridge shrinks it; that is the
        published method. Bind the editor to the unedited model: its weights then are the original
        ones.
    """

    history_by_default: ClassVar[bool] = True
    history_keys: ClassVar[Literal["edited", "solved"]] = "solved"
    history_residuals: ClassVar[bool] = True
    search_original: ClassVar[bool] = True

    def __init__(
        self, moment_weight: float | None = None, clamp: float = 0.75, **search: Any
    ) -> None:
        super().__init__(clamp=clamp, keep_history=True, **search)
        self.moment_weight = moment_weight
        self._undone = False
        self._totals: dict[int, Tensor | None] = {}

    def on_bind(self) -> None:
        """Begin with nothing in force."""
        super().on_bind()
        self._undone = False
        self._totals = {}

    def get_extra_state(self) -> dict[str, Any]:
        """Keep in checkpoints whether the edits in force are a joint solution."""
        return super().get_extra_state() | {"undone": self._undone}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().set_extra_state(state)
        self._undone = bool(state["undone"])

    def remember(self, delta: Delta) -> None:
        """Add a committed edit to the sums; a dense one has made up for what was undone."""
        super().remember(delta)
        self._totals.clear()
        if any(isinstance(update, Dense) for update in delta.weights.values()):
            self._undone = False

    def forget(self, delta: Delta) -> None:
        """Take an undone edit out of the sums; what is left is no joint solution any more."""
        super().forget(delta)
        self._totals.clear()
        self._undone = self.past is not None and bool(self.past.in_force)

    def recall(self, delta: Delta) -> None:
        """Note an edit that a checkpoint's sums hold."""
        super().recall(delta)
        self._totals.clear()

    def preserve(self, layer: int, moment: Float[Tensor, "f f"] | None) -> Preserved:
        """Factor λC + Σ KKᵀ."""
        return self.factored(layer, moment, self.moment_weight)

    def target(self, targets: Targets) -> Float[Tensor, "n d"]:
        """Return the distances on the original weights."""
        return targets.delta.double()

    def residual(
        self, target: Float[Tensor, "n d"], bare: Sequence[TokenizedText]
    ) -> Float[Tensor, "n d"]:
        """Return the distances as they are: nothing is measured again."""
        return target

    def total(self, layer: int) -> Float[Tensor, "d f"] | None:
        """Return the joint solution for the edits in force; ``None`` while there is none."""
        if layer not in self._totals:
            cross = None if self.past is None else self.past.residuals(layer)
            self._totals[layer] = (
                None if cross is None else self.preserved(layer).inverse_times(cross.mT).mT
            )
        return self._totals[layer]

    def solve(
        self, layer: int, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Find the step from the joint solution so far to the one with this batch."""
        before = self.total(layer)
        step = residuals if before is None else residuals - before @ keys
        return least_squares(keys, step, self.preserved(layer))

    def update(self, layer: int, solution: Solution) -> WeightUpdate:
        """Return the step; after an undo, with what is to be corrected."""
        before = self.total(layer)
        if before is None or self.past is None or not self._undone:
            return super().update(layer, solution)
        name = self.view.parameter(layer)
        value = before + solution.left @ solution.right
        for delta in self.past.in_force:
            value = value - host_update(delta, name).to(value.device)
        return Dense(value.float())
