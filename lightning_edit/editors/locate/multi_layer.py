"""Multi-layer editing: MEMIT and its relatives, which spread an edit over several layers.

Each edited layer, lowest first, writes a part of the remaining residual (target minus current
hidden state at the subject) by least squares, on the model with the lower layers already updated.
A method names the pieces: :mod:`~lightning_edit.editors.locate.residual_schedule`,
:mod:`~lightning_edit.editors.locate.solver`, and the history policy of
:mod:`~lightning_edit.editors.locate.key_history`.

Axis names: ``n`` -- edits; ``r`` -- rows, an edit under one context template; ``d`` -- hidden
width; ``f`` -- width of a key, the down-projection's input.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.context_templates import OPENINGS
from lightning_edit.editors.locate.key_history import HistoryPolicy, KeyHistory
from lightning_edit.editors.locate.layer_by_layer import edit_layer_by_layer, out_of_reach, unlikely
from lightning_edit.editors.locate.residual_schedule import EVEN_SPLIT, ResidualSchedule
from lightning_edit.editors.locate.search_objective import TargetSearch
from lightning_edit.editors.locate.solver import UpdateTransform, low_rank
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.edits.columns import LEFT_OUT, one_each
from lightning_edit.edits.delta import Delta, LowRank, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.exceptions import ArchitectureError
from lightning_edit.functional.leave_one_out import left_out_columns
from lightning_edit.functional.solve import Solution
from lightning_edit.inference.hooks import Side
from lightning_edit.inference.packed.block_inputs import BlockInputs
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

#: Share of a target vector that may be left behind a norm before lower layers write less.
_OUT_OF_REACH = 0.05


@dataclass
class LayerSolutions:
    """Per-layer results of one solve over all layers.

    Args:
        updates: The update of each layer's down-projection.
        solutions: The solved systems.
        keys: The solved keys, (n, f).
        residuals: Each layer's part of the residual at those keys, (n, d).
        out_of_reach: Targets that the last layer could not reach, (n,), so that it was not solved.
    """

    updates: dict[int, WeightUpdate] = field(default_factory=dict)
    solutions: list[Solution] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)
    out_of_reach: Tensor | None = None


class MultiLayerEditor(LocateThenEdit, family=True):
    """Family of multi-layer editors: a batch spread over consecutive layers, one solve per layer.

    A method names its pieces: the target search, a residual schedule, a solver, a history policy,
    and a transform of Δ if it has one.

    Args:
        keep_history: Whether the keys of the edits in force are preserved like corpus keys.
        search: Other arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        An undo removes an edit's keys from the history, so that later edits are solved without it.
        The updates of edits that were solved while it was in force do not change.

        Where a norm follows the MLP (Gemma 2 and 3, OLMo 2, GLM-4), vectors are searched at the
        MLP's output, since the block's cannot take every value, and each layer's share is mapped
        through its norm. Shares do not add exactly there, so the lower layers write less if the
        last one could not make up for it; up to a tenth of the residual may be left. Where the
        last layer cannot reach an answer at all, the whole batch is searched in every layer, with
        ``clamp="auto"``: :mod:`~lightning_edit.editors.locate.layer_by_layer`. NSE and PMET, and
        hosts of LTI and SIR, are searched in the last layer alone.
    """

    target_search: ClassVar[TargetSearch] = TargetSearch("block")
    schedule: ClassVar[ResidualSchedule] = EVEN_SPLIT
    """How the residual is divided among the layers."""
    history_policy: ClassVar[HistoryPolicy] = HistoryPolicy(by_default=False)
    """What is kept of an edit while it is in force, if ``keep_history`` is set."""
    # `max_out_len` 10 in the authors' code.
    template_openings: ClassVar[tuple[str, ...]] = OPENINGS
    template_lengths: ClassVar[tuple[int, ...]] = (10,) * len(OPENINGS)

    def __init__(self, keep_history: bool = False, **search: Any) -> None:
        super().__init__(**search)
        self.keep_history = keep_history
        self.past: KeyHistory | None = None
        self.transform: UpdateTransform = low_rank
        self.share_of_searched = 1.0  # of a searched vector; only with such a schedule

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layers: two or more in the lower third (published: Llama 4-8 of 32).

        The last block is never one of them: a target there could not act on later tokens. On the
        embedded model of five blocks, 0 and 1 write 90 % of 20 facts, 0 to 2 only 65 %.
        """
        top = num_blocks - 1
        first = int(0.13 * top)
        last = max(0, min(top - 1, max(first + 1, round(0.26 * top))))
        return list(range(min(first, last), last + 1))

    # ------------------------------------------------------------------------------------ history

    def on_bind(self) -> None:
        """Bind as every locate-then-edit method does, and start with an empty key history."""
        super().on_bind()
        if self.schedule.residual == "searched" and (
            normed := [path.block for path in self.paths.values() if path.norm is not None]
        ):
            raise ArchitectureError(
                f"{type(self).__name__} writes the searched vectors of all edits in one linear "
                f"system, but {type(self.language_model).__name__} has a norm between the MLP and "
                f"the output of {', '.join(normed)}, through which vectors do not add; use MEMIT, "
                "AlphaEdit or another method that reads the residual again"
            )
        self.past = None
        if self.keep_history:
            device = self.view.embeddings.get_parameter("weight").device
            self.past = KeyHistory(self.edited_layers, self.history_policy.residuals, device)
        for layer in self.bound_layers.values():
            layer.past = self.past

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Keep the keys of the edits in force, and of no other, to the bit."""
        if self.past is not None:
            self.past.follow(in_force, change)
            for layer in self.bound_layers.values():
                layer.forget_factors()

    def history_entries(
        self, texts: Sequence[TokenizedText], solved: LayerSolutions
    ) -> dict[str, Tensor]:
        """Return a delta's history; called while the updates are applied.

        Args:
            texts: Every request in every template, the bare prompt of each first.
            solved: The solved layers.
        """
        if not self.keep_history:
            return {}
        return self.history_policy.entries(
            solved.keys, solved.residuals, lambda: self.mean_keys(texts, self.edited_layers)
        )

    # ------------------------------------------------------------------------------------- solving

    def _search_and_write(self, batch: EditBatch) -> Delta:
        return self._in_reach(batch, super()._search_and_write(batch))

    def _search_and_write_each(self, batch: EditBatch) -> list[Delta]:
        found = super()._search_and_write_each(batch)
        return [self._in_reach(*each) for each in zip(batch.split(), found, strict=True)]

    def _in_reach(self, batch: EditBatch, delta: Delta) -> Delta:
        """Return a delta, or one of a search in every layer that writes more answers.

        Args:
            batch: The requests.
            delta: Their edit with a search in the last layer.
        """
        searches = self.clamp == "auto" and self.target_search == TargetSearch("block")
        normed = searches and any(path.norm is not None for path in self.paths.values())
        short = normed and out_of_reach(delta.info, self.objective.steps)
        if not short or len(self.edited_layers) == 1:
            return delta
        chosen = dict(self.chosen)
        other: Delta | None = None
        try:
            other = edit_layer_by_layer(self, batch, super()._search_and_write)
            better = unlikely(other.info) < unlikely(delta.info)
        finally:
            if other is None or not better:
                self.chosen = chosen
        return other if better else delta

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the updates of all layers.

        Args:
            batch: The requests.
            targets: Their target vectors, for the output of the last edited block.
        """
        texts = self.key_texts(batch)
        with self.solve_layers(texts, targets) as solved:
            history = self.history_entries(texts, solved)
            info = self.info(batch, targets, solved.solutions)
        updates = self.by_parameter(solved.updates)
        columns = self.columns_of(updates, len(batch))
        if len(batch) > 1:
            history = history | self._left_out(columns, solved)
        return Delta(batch.ids, updates, info=info, history=history, columns=columns)

    def _left_out(
        self, columns: Mapping[str, Sequence[int]], solved: LayerSolutions
    ) -> dict[str, Tensor]:
        """Return what attribution needs to say what a solve without one request would give."""
        named = {self.view.parameter(number): number for number in solved.updates}
        order = list(solved.updates)
        found = {}
        for name, owners in columns.items():
            solution = solved.solutions[order.index(named[name])]
            if solution.gram_inverse is not None:
                rows = left_out_columns(solution.left, solution.gram_inverse, owners).mT
                found[LEFT_OUT + name] = rows.float()
        return found

    def columns_of(
        self, updates: Mapping[str, WeightUpdate], requests: int
    ) -> dict[str, tuple[int, ...]]:
        """Return which request each column of solved updates belongs to.

        An update that is dense, or whose system had more keys than outputs and was solved for the
        whole matrix, has no column of its own for each key and is left out.

        Args:
            updates: By parameter name.
            requests: Number of requests that were solved together.
        """
        each = len(self.prompts.forms)
        listed = [
            name
            for name, update in updates.items()
            if isinstance(update, LowRank) and update.rank == requests * each
        ]
        return one_each(listed, requests, each)

    @contextmanager
    def solve_layers(
        self, texts: Sequence[TokenizedText], targets: Targets
    ) -> Iterator[LayerSolutions]:
        """Solve layer by layer; inside the ``with`` block the model has all updates applied.

        Args:
            texts: Every request in every template, the bare prompt of each first.
            targets: The target vectors of these requests.
        """
        lower: Tensor | None = None
        while True:
            with ExitStack() as stack:
                solved = self._solve_once(stack, texts, targets, lower)
                if solved.out_of_reach is None:
                    yield solved
                    return
            # A norm has no output of every length: what the layers below wrote has left the last
            # one a change that it cannot make. They write less, at last nothing.
            whole = torch.ones_like(targets.delta[:, :1]) if lower is None else lower
            less = torch.where(whole > 0.25, whole / 2, 0.0)
            lower = torch.where(solved.out_of_reach[:, None], less, whole)

    def _solve_once(
        self,
        stack: ExitStack,
        texts: Sequence[TokenizedText],
        targets: Targets,
        lower: Float[Tensor, "n 1"] | None,
    ) -> LayerSolutions:
        """Solve layer by layer, leaving the updates applied until the stack is closed.

        Args:
            stack: Takes the updates back.
            texts: Every request in every template.
            targets: Their target vectors.
            lower: Part of their shares that the layers below the last one write; ``None``: all.
        """
        layers, solved = self.edited_layers, LayerSolutions()
        bare = texts[:: self.texts_per_request]
        # An edit of a layer changes nothing below it, which is read once.
        below, below_bare = BlockInputs(self.view), BlockInputs(self.view)
        for done, number in enumerate(layers):
            layer = self.bound_layers[number]
            below.keep = below_bare.keep = number
            solved.keys |= self.mean_keys(texts, [number], below)
            rest = self._share(targets, bare, number, len(layers) - done, below_bare)
            if number < layers[-1] and lower is not None:
                rest = rest * lower.to(rest)
            elif number == layers[-1]:
                solved.out_of_reach = self._out_of_reach(targets, bare, rest, lower)
                if solved.out_of_reach is not None:
                    return solved
            # One column for every key: a request has one for each form of its prompt.
            columns = rest.repeat_interleave(len(self.prompts.forms), 0)
            solved.residuals[number] = columns
            with self.stage("solve"):
                solution = self.solver.solve(layer, solved.keys[number].mT, columns.mT)
            update = self.transform(layer, solution)
            solved.updates[number] = update
            solved.solutions.append(solution)
            # Each layer is solved on the model with the updates of the layers below it.
            one = Delta((), self.by_parameter({number: update}))
            stack.enter_context(one.applied(self.language_model))
        return solved

    def _share(
        self,
        targets: Targets,
        bare: Sequence[TokenizedText],
        number: int,
        left: int,
        inputs: BlockInputs,
    ) -> Float[Tensor, "n d"]:
        """Return a layer's share of the residual, as a change of its down-projection's output.

        Shares are divided in the hidden state, to which all layers add.

        Args:
            targets: The target vectors.
            bare: The bare prompts, cut after the subject.
            number: The layer.
            left: Number of layers left, this one included.
            inputs: What earlier readings of the bare prompts have kept of the blocks below.
        """
        last, divisor = self.edited_layers[-1], self.schedule.divisor(left)
        path, top = self.paths[number], self.paths[last]
        state: dict[str, Tensor] = {}
        if self.schedule.residual == "searched":
            residual = self.share_of_searched * targets.delta.double()[:, self.written]
        else:
            wanted: dict[str, Side] = {self.site_module: "output"}
            state = self.all_at_subjects(bare, wanted | top.wanted | path.wanted, inputs)
            residual = targets.wanted.double()[:, self.written] - state[self.site_module]
        at_block = self.target_search.site == "block"
        if number < last:
            residual = residual if at_block else top.to_block(residual, state)
            return path.from_block(top.share(residual, divisor, state), state)
        residual = residual / divisor
        return path.from_block(residual, state) if at_block else residual

    def _out_of_reach(
        self,
        targets: Targets,
        bare: Sequence[TokenizedText],
        change: Float[Tensor, "n d"],
        lower: Float[Tensor, "n 1"] | None,
    ) -> Bool[Tensor, " n"] | None:
        """Return which targets the last layer cannot reach, since a norm follows; ``None``: none.

        A target for which the layers below write nothing any more counts as none of them.

        Args:
            targets: The target vectors, of the block's output.
            bare: The bare prompts, cut after the subject.
            change: The change of the last layer's down-projection that comes closest.
            lower: Part of their shares that the layers below have written; ``None``: all.
        """
        top = self.paths[self.edited_layers[-1]]
        if top.norm is None or self.target_search.site != "block" or len(self.edited_layers) == 1:
            return None
        state = self.all_at_subjects(bare, top.wanted | {self.site_module: "output"})
        residual = targets.wanted.double() - state[self.site_module]
        left = (residual - top.to_block(change, state)).norm(dim=1)
        out = left > _OUT_OF_REACH * targets.delta.double().norm(dim=1)
        if lower is not None:
            out &= lower[:, 0].to(out.device) > 0
        return out if bool(out.any()) else None

    def residual(self, targets: Targets, bare: Sequence[TokenizedText]) -> Float[Tensor, "n d"]:
        """Return what is missing at each subject: target minus current value, at the site.

        Args:
            targets: The target vectors.
            bare: The bare prompts, cut after the subject.
        """
        return targets.wanted.double()[:, self.written] - self.current_values(bare)

    def current_values(self, bare: Sequence[TokenizedText]) -> Float[Tensor, "n d"]:
        """Return the current hidden states at each subject, at the layer and site of targets."""
        return self.at_subjects(bare, self.site_module, "output")

    def mean_keys(
        self,
        texts: Sequence[TokenizedText],
        layers: Sequence[int],
        inputs: BlockInputs | None = None,
    ) -> dict[int, Tensor]:
        """Return keys per layer, (n, f): mean of the bare prompt's key and all other texts' mean.

        A request that is written for chat and plain text has a key for either form, one behind the
        other; their mean would be written too weakly at both.

        Args:
            texts: Every request in every template, the bare prompt of each first.
            layers: The layers, read in one pass.
            inputs: What earlier readings of the same texts have kept of the blocks below.
        """
        names = {layer: self.view.down_projection(layer) for layer in layers}
        wanted: dict[str, Side] = dict.fromkeys(names.values(), "input")
        read = self.all_at_subjects(texts, wanted, inputs)
        return {layer: self._average_over_templates(read[name]) for layer, name in names.items()}

    def _average_over_templates(self, keys: Float[Tensor, "r f"]) -> Float[Tensor, "n f"]:
        grouped = keys.reshape(-1, len(self.templates), keys.shape[1])
        if len(self.templates) == 1:
            return grouped[:, 0]
        return torch.stack([grouped[:, 0], grouped[:, 1:].mean(1)]).mean(0)

    def by_parameter(self, updates: Mapping[int, WeightUpdate]) -> dict[str, WeightUpdate]:
        """Map layer updates to parameter names."""
        return {self.view.parameter(layer): update for layer, update in updates.items()}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: second moment, float64 factor, float64 history if kept."""
        history = 8 * len(layers) * view.intermediate_size**2
        kept = history if cls.history_policy.by_default else 0
        return super().memory_bytes(view, layers) + kept
