"""NSE: Jiang et al., Neuron-Level Sequential Editing for LLMs, arXiv 2410.04045."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.locate.edited_layer import EditedLayer, PenaltyWeight
from lightning_edit.editors.locate.key_history import HistoryPolicy
from lightning_edit.editors.locate.multi_layer import LayerSolutions, MultiLayerEditor
from lightning_edit.editors.locate.residual_schedule import EVEN_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import LeastSquares, Solver
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.editors.one_by_one import concat_low_rank
from lightning_edit.edits.columns import joined, renumbered
from lightning_edit.edits.delta import Delta, LowRank
from lightning_edit.functional.neurons import most_active
from lightning_edit.functional.solve import Solution, least_squares
from lightning_edit.types import EditBatch

log = logging.getLogger(__name__)


class ActiveNeurons(Solver):
    """Least squares for the weight columns of the most active neurons only.

    Args:
        moment_weight: λ; ``auto``: a ninth of the width of a key; ``None``: the width.
        share: Share of the keys' activity that the written neurons carry; 1: all neurons.
    """

    def __init__(self, moment_weight: PenaltyWeight, share: float) -> None:
        self.moment_weight, self.share = moment_weight, share

    def chosen(self, layers: Mapping[int, EditedLayer]) -> dict[str, list[float]]:
        """Return λ of each layer where it is ``auto``."""
        return LeastSquares(self.moment_weight).chosen(layers)

    def solve(
        self, layer: EditedLayer, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Solve least squares for the weight columns of the most active neurons."""
        if self.share == 1:
            return least_squares(keys, residuals, layer.preserved(self.moment_weight))
        J = most_active(keys, self.share)
        preserved = layer.preserved(self.moment_weight, neurons=J)
        solution = least_squares(keys[J], residuals, preserved)
        right = solution.right.new_zeros(len(solution.right), len(keys))
        right[:, J] = solution.right
        return replace(solution, right=right)


class NSE(MultiLayerEditor):
    r"""Sequential MEMIT on the most active neurons, with targets searched on the original weights.

    Only the entries J of a key (neurons) that carry most of the batch's activity are written,
    :math:`\Delta_J = R K_J^\top (\lambda C_{JJ} + \sum K_p K_p^\top|_{JJ} + K_J K_J^\top)^{-1}`;
    facts that are still far from their targets are written again.

    Args:
        moment_weight: λ: 15 000 for GPT-J and Llama 3, 10 000 for GPT-2 XL in the authors' configs;
            ``auto``: a ninth of the width of a key, as in MEMIT; ``None``: the width of a key.
        neurons: Share of the keys' activity that the written neurons carry: 0.8 for GPT-J; 1, all
            neurons, for GPT-2 XL and Llama 3.
        reached: Distance to the target up to which a fact is not written (again).
        too_far: Distance from which a fact is skipped, with a warning; ``None``: none is.
        distance: Unit of both: ``relative`` to ‖h₀‖, or ``absolute``, as the published values are
            (15 and 100 for GPT-J, 35 and 150 for GPT-2 XL, 2.5 and 50 for Llama 3).
        passes: Most times that a fact is written (2 in the authors' configs, whose third iteration
            writes nothing).
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search: 0.75 in the authors' configs; ``auto``: also
            more, where that keeps an answer out of reach.
        keep_history: Whether later batches preserve the keys of earlier ones.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        Published distances depend on a model's width and activation scale, so the default is
        relative, with a value chosen by this library. The authors' code adds the keys of skipped
        facts to the history although nothing was written for them; here they are left out. A single
        neuron that exceeds the share is still written. Bind the editor to the unedited model: the
        weights at binding are the original ones.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block", weights="original")
    schedule: ClassVar[ResidualSchedule] = EVEN_SPLIT
    history_policy: ClassVar[HistoryPolicy] = HistoryPolicy("edited")

    def __init__(
        self,
        moment_weight: PenaltyWeight = "auto",
        neurons: float = 0.8,
        reached: float = 0.1,
        too_far: float | None = None,
        distance: Literal["relative", "absolute"] = "relative",
        passes: int = 2,
        clamp: float | Literal["auto"] = "auto",
        keep_history: bool = True,
        **search: Any,
    ) -> None:
        super().__init__(clamp=clamp, keep_history=keep_history, **search)
        if not 0 < neurons <= 1 or passes < 1:
            raise ValueError(
                "neurons is a share above 0 and up to 1, and passes at least 1, got "
                f"neurons={neurons}, passes={passes}"
            )
        self.moment_weight = moment_weight
        self.neurons = neurons
        self.reached = reached
        self.too_far = too_far
        self.distance: Literal["relative", "absolute"] = distance
        self.passes = passes
        self.solver = ActiveNeurons(moment_weight, neurons)

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the updates of all layers, summed over the passes.

        Args:
            batch: The requests.
            targets: Their target vectors, searched on the original weights.
        """
        texts = self.key_texts(batch)
        bare = texts[:: self.texts_per_request]
        unit = targets.initial.double().norm(dim=1) if self.distance == "relative" else 1.0
        updates: dict[int, LowRank] = {}
        solutions: list[Solution] = []
        columns: dict[str, tuple[int, ...]] = {}
        within: Tensor | None = None
        with ExitStack() as stack:
            for _ in range(self.passes):
                distances = self.residual(targets, bare).norm(dim=1) / unit
                if within is None:
                    within = self._within_reach(batch, distances)
                to_write = [int(i) for i in (within & (distances > self.reached)).nonzero()]
                if not to_write:
                    break
                part = [text for text in texts if text.request in to_write]
                solved = stack.enter_context(self.solve_layers(part, targets.select(to_write)))
                found = self.columns_of(self.by_parameter(solved.updates), len(to_write))
                columns = joined(columns, renumbered(found, to_write))
                for layer, update in solved.updates.items():
                    assert isinstance(update, LowRank)  # there is no transform
                    updates[layer] = concat_low_rank(updates.get(layer), update)
                solutions += solved.solutions
            kept = [text for text in texts if within is not None and bool(within[text.request])]
            history = self.history_entries(kept, LayerSolutions()) if kept else {}
            info = self.info(batch, targets, solutions)
        named = self.by_parameter(updates)
        columns = {
            name: owners for name, owners in columns.items() if len(owners) == named[name].rank
        }
        return Delta(batch.ids, named, info=info, history=history, columns=columns)

    def _within_reach(self, batch: EditBatch, distances: Float[Tensor, " n"]) -> Tensor:
        """Return a mask of the facts close enough to edit, and log a warning about the others."""
        if self.too_far is None:
            return torch.ones_like(distances, dtype=torch.bool)
        within = distances < self.too_far
        if left := [name for name, near in zip(batch.ids, within, strict=True) if not bool(near)]:
            log.warning(
                "Not edited, since their targets are farther away than too_far=%g: %s.",
                self.too_far,
                ", ".join(left[:8]),
            )
        return within
