"""R-ROME and p-ROME: Gupta et al., Rebuilding ROME, EMNLP 2024, arXiv 2403.07175."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.rome import ROME
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares, Solver
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.edits.columns import one_each
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.types import EditBatch


class RROME(LocateThenEdit):
    r"""R-ROME: ROME with the same key in numerator and denominator, so that no edit explodes.

    :math:`\Delta = (v_* - v)(C^{-1}k)^\top / (k^\top C^{-1}k)`.

    Args:
        key: ``averaged``: k and v are means over the context templates (R-ROME). ``prompt``: k and
            v of the bare prompt (p-ROME).
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        v* is the bare prompt's value plus δ, as in the authors' code, so with ``averaged`` the
        residual includes the difference between the bare and the mean value.
    """

    batched: ClassVar[bool] = False
    one_layer: ClassVar[bool] = True
    target_search: ClassVar[TargetSearch] = TargetSearch("mlp")
    first_clamp: ClassVar[float] = ROME.first_clamp
    solver: Solver = LeastSquares(mode="equality")
    template_openings: ClassVar[tuple[str, ...]] = ROME.template_openings
    template_lengths: ClassVar[tuple[int, ...]] = ROME.template_lengths

    def __init__(self, key: Literal["averaged", "prompt"] = "averaged", **search: Any) -> None:
        super().__init__(**search)
        self.key = key

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return ROME's default layer."""
        return ROME.default_layers(num_blocks)

    def missed_advice(self) -> str:
        """Return what helps edits that did not arrive at their targets, a sentence."""
        if self.key == "prompt" or len(self.templates) == 1:
            return super().missed_advice()
        return (
            "They are written at the mean key of the context templates, which may be far from the "
            'prompt\'s own: give key="prompt", or edit another layer.'
        )

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the rank-one update of one request.

        Args:
            batch: One request.
            targets: Its target vector.
        """
        (layer,) = self.bound_layers.values()
        step = None if self.key == "averaged" else len(self.templates)
        rows = slice(None, None, step)  # all, or the bare prompt in every form
        key = targets.keys[0][rows].double().mean(0)
        values = targets.values[0].double()
        # Of an edit for chat and plain text the target is the mean of the bare prompts' plus δ.
        shift = values[:: len(self.templates)].mean(0) - values[0]
        residual = targets.wanted[0].double() + shift - values[rows].mean(0)
        with self.stage("solve"):
            solution = self.solver.solve(layer, key[:, None], residual[:, None])
        update = LowRank(solution.left.float(), solution.right.float())
        columns = one_each([layer.parameter], 1)
        delta = Delta(batch.ids, {layer.parameter: update}, columns=columns)
        with delta.applied(self.language_model):
            return replace(delta, info=self.info(batch, targets, [solution]))
