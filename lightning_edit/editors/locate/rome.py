"""ROME: Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022, 2202.05262."""

from dataclasses import replace
from typing import ClassVar

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares, Solver
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.edits.columns import one_each
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.types import EditBatch


class ROME(LocateThenEdit):
    r"""Rank-one edit of one MLP layer: one fact at a time, with an equality constraint (sec. 3.1).

    :math:`\Delta = (v_* - v)\,u^\top / (k^\top u)` with :math:`u = C^{-1}\bar k`, the update that
    moves other keys least. Arguments and their sources:
    :class:`~lightning_edit.editors.locate.base.LocateThenEdit`. A batch is written one by one.

    Note:
        As in the authors' code, the direction u comes from the mean key over all context templates
        and the scale from the key of the bare prompt. Where the two differ much (a subject at the
        start of the prompt) the update norm can explode;
        :class:`~lightning_edit.editors.locate.r_rome.RROME` uses one key for both.
    """

    batched: ClassVar[bool] = False
    one_layer: ClassVar[bool] = True
    target_search: ClassVar[TargetSearch] = TargetSearch("mlp")
    first_clamp: ClassVar[float] = 3.0
    solver: Solver = LeastSquares(mode="equality")
    # Ten texts of 5 and ten of 10 tokens: `context_template_length_params` of the authors' configs.
    template_openings: ClassVar[tuple[str, ...]] = ("",) * 20
    template_lengths: ClassVar[tuple[int, ...]] = (5,) * 10 + (10,) * 10

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer (published: GPT-J 5 of 28, Llama 5 of 32; atlas: 0 of 5)."""
        return [int(0.19 * (num_blocks - 1))]

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the rank-one update of one request.

        Args:
            batch: One request.
            targets: Its target vector.
        """
        (layer,) = self.bound_layers.values()
        keys, values = targets.keys[0].double(), targets.values[0].double()
        residual = targets.wanted[0].double() - values[0]
        with self.stage("solve"):
            solution = self.solver.solve(layer, keys.mean(0)[:, None], residual[:, None])
        # The row gives 1 at the mean key; the authors' code scales it to 1 at the bare prompt's
        # (at the mean of the bare prompts, where chat and plain text are written).
        bare = keys[:: len(self.templates)].mean(0)
        right = solution.right / (solution.right @ bare)
        update = LowRank(solution.left.float(), right.float())
        columns = one_each([layer.parameter], 1)
        delta = Delta(batch.ids, {layer.parameter: update}, columns=columns)
        with delta.applied(self.language_model):
            return replace(delta, info=self.info(batch, targets, [solution]))
