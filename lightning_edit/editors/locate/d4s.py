"""D4S: Huang et al., Reasons and Solutions for the Decline after Editing, NeurIPS 2024, 2410.23843.

Axis names: ``n`` -- edits; ``d`` -- hidden width; ``f`` -- width of a key.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.edited_layer import EditedLayer, PenaltyWeight
from lightning_edit.editors.locate.key_history import HistoryPolicy
from lightning_edit.editors.locate.multi_layer import MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import SEARCHED_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares, Solver, low_rank
from lightning_edit.edits.correction import host_update
from lightning_edit.edits.delta import Delta, Dense, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.solve import Solution


class JointSolution(Solver):
    """Joint solution of all edits in force; a batch is the step from one to the next.

    Args:
        moment_weight: λ; ``auto``: a ninth of the width of a key; ``None``: the width.

    Attributes:
        undone: Whether the updates in force are no joint solution, since one was undone or redone.
    """

    def __init__(self, moment_weight: PenaltyWeight) -> None:
        self.system = LeastSquares(moment_weight)
        self.undone = False
        self._totals: dict[int, Tensor | None] = {}

    def chosen(self, layers: Mapping[int, EditedLayer]) -> dict[str, list[float]]:
        """Return λ of each layer where it is ``auto``."""
        return self.system.chosen(layers)

    def reset(self) -> None:
        """Start anew, with no edit in force."""
        self.undone = False
        self._totals = {}

    def follow(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the list of edits in force.

        Args:
            in_force: The list.
            change: What changed.
        """
        self._totals.clear()
        if change.kind in ("removed", "inserted"):
            self.undone = len(in_force) > 0
        elif change.kind == "appended" and any(
            isinstance(update, Dense) for one in change.deltas for update in one.weights.values()
        ):
            self.undone = False

    def total(self, layer: EditedLayer) -> Float[Tensor, "d f"] | None:
        """Return the total update of the edits in force; ``None`` if none is.

        Args:
            layer: The layer.
        """
        if layer.number not in self._totals:
            cross = None if layer.past is None else layer.past.residuals(layer.number)
            self._totals[layer.number] = (
                None if cross is None else self.system.preserved(layer).inverse_times(cross.mT).mT
            )
        return self._totals[layer.number]

    def solve(
        self, layer: EditedLayer, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Solve for the step from the previous joint solution to the one with this batch."""
        before = self.total(layer)
        step = residuals if before is None else residuals - before @ keys
        return self.system.solve(layer, keys, step)

    def update(self, layer: EditedLayer, solution: Solution) -> WeightUpdate:
        """Return the step's weight update; after an undo, a dense one with the correction.

        Args:
            layer: The layer.
            solution: Its solved system.
        """
        before = self.total(layer)
        if before is None or layer.past is None or not self.undone:
            return low_rank(layer, solution)
        value = before + solution.left @ solution.right
        for delta in layer.past.in_force:
            value = value - host_update(delta, layer.parameter).to(value.device)
        return Dense(value.float())


class D4S(MultiLayerEditor):
    r"""Joint solution for all sequential edits so far, from two running sums of constant size.

    The total update of a layer is :math:`s \frac{\sum R K^\top}{|L| - i} (\lambda C + \sum K
    K^\top)^{-1}` over every edit in force ("dump for sequence"). Targets are searched on the
    original weights, and R, the residual there, is not recomputed per layer.

    Args:
        moment_weight: λ, as in MEMIT; ``auto``: a ninth of the width of a key; ``None``: the width.
        scale: s, which is 1 in the paper and in the authors' code. ``auto``: beside a λ by rule
            :math:`1 / \sum_{j=1}^{|L|} 1/j`, so that the layers together write R once; beside a
            number, and beside ``None``, the authors' 1.
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search: 0.75 in the authors' configs; ``auto``: also
            more, where that keeps an answer out of reach.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        A delta is the difference of two totals; without an undo it has the rank of its batch. After
        an undo the next edit also corrects the remaining edits for the undone one, so its update is
        dense. Since R is not recomputed, several layers together write more than it with s = 1,
        2.3 times for five layers, before the ridge shrinks it; that is the published method, and
        its λ of 15000 shrinks much. What the lower layers write also arrives at the top turned, the
        more the more layers there are, which nothing corrects; so two are edited by default, the
        upper ones of MEMIT's (published: MEMIT's five or six). Of ten questions of zsRE, each
        alone, SmolLM2 had 5 written by MEMIT's six layers with s = 1, and 10 by the defaults.

        Bind the editor to the unedited model: the weights at binding are the original ones. A model
        with a norm behind its MLPs (Gemma 2 and 3, OLMo 2, GLM-4) is refused: vectors do not add
        there.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block", weights="original")
    schedule: ClassVar[ResidualSchedule] = SEARCHED_SPLIT
    history_policy: ClassVar[HistoryPolicy] = HistoryPolicy("solved", residuals=True)

    def __init__(
        self,
        moment_weight: PenaltyWeight = "auto",
        clamp: float | Literal["auto"] = "auto",
        scale: float | Literal["auto"] = "auto",
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=True, **search)
        if scale != "auto" and not scale > 0:
            raise ValueError(f"scale multiplies the residual, expected more than 0, got {scale}")
        self.moment_weight = moment_weight
        self.scale: float | Literal["auto"] = scale
        self.solver = self.joint = JointSolution(moment_weight)
        self.transform = self.joint.update

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: the upper two of MEMIT's."""
        return super().default_layers(num_blocks)[-2:]

    def on_bind(self) -> None:
        """Choose the scale of the residual, and reset the joint solutions and the key history."""
        super().on_bind()
        if self.scale == "auto":
            left = range(1, len(self.edited_layers) + 1)
            by_rule = self.moment_weight == "auto"
            self.share_of_searched = 1 / sum(1 / n for n in left) if by_rule else 1.0
            self.chose({"scale": self.share_of_searched})
        else:
            self.share_of_searched = self.scale
        self.joint.reset()

    def missed_advice(self) -> str:
        """Return what helps edits that did not arrive at their targets, a sentence."""
        scale = f"give another `scale` (it is {self.share_of_searched:.2g})"
        fewer = len(self.edited_layers) > 1
        return f"Edit fewer layers or one, or {scale}." if fewer else f"{scale.capitalize()}."

    def get_extra_state(self) -> dict[str, Any]:
        """Save in checkpoints whether the edits in force are a joint solution."""
        return super().get_extra_state() | {"undone": self.joint.undone}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint whether the edits in force are a joint solution."""
        super().set_extra_state(state)
        self.joint.undone = bool(state["undone"])

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Follow the sums; after an undo or redo the updates in force are no joint solution.

        The next edit makes up for that, with a dense update.
        """
        for delta in change.deltas:
            solved = {int(name.split("/")[1]) for name in delta.history if name[:9] == "residuals"}
            if solved and solved != set(self.edited_layers):
                raise ConfigError(
                    f"the edits in force were solved jointly in layers {sorted(solved)}, and this "
                    f"{type(self).__name__} edits {self.edited_layers}: give "
                    f"`layers={sorted(solved)}` (and the `scale` that they were made with, before "
                    "there was one 1.0) to go on with them"
                )
        super().on_history(in_force, change)
        self.joint.follow(in_force, change)
