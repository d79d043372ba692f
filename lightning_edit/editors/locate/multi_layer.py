"""Multi-layer editing: MEMIT and its relatives, which spread an edit over several layers.

Each edited layer, lowest first, writes a part of the remaining residual (target minus current
hidden state at the subject) by least squares, on the model with the lower layers already updated.
A subclass defines a layer's linear system, and whether keys of earlier edits are part of it.

Axis names: ``n`` -- edits; ``r`` -- rows, an edit under one context template; ``d`` -- hidden
width; ``f`` -- width of a key, the down-projection's input; ``s`` -- some of its entries.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.locate.base import LocateThenEdit
from lightning_edit.editors.locate.context_templates import OPENINGS
from lightning_edit.editors.locate.key_history import KeyHistory
from lightning_edit.editors.locate.target_search import Targets
from lightning_edit.edits.delta import Delta, LowRank, WeightUpdate
from lightning_edit.edits.in_force import HistoryChange
from lightning_edit.functional.solve import Preserved, Solution, least_squares
from lightning_edit.inference.hooks import Side
from lightning_edit.inference.suffix.forward import Site
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch


@dataclass
class LayerSolutions:
    """Per-layer results of one solve over all layers.

    Args:
        updates: The update of each layer's down-projection.
        solutions: The solved systems.
        keys: The solved keys, (n, f).
        residuals: Each layer's part of the residual at those keys, (n, d).
    """

    updates: dict[int, WeightUpdate] = field(default_factory=dict)
    solutions: list[Solution] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)


class MultiLayerEditor(LocateThenEdit, family=True):
    """Family of multi-layer editors: a batch spread over consecutive layers, one solve per layer.

    Args:
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        keep_history: Whether the keys of the edits in force are preserved like corpus keys.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        An undo removes an edit's keys from the history, so that later edits are solved without it.
        The updates of edits that were solved while it was in force do not change.
    """

    site: ClassVar[Site] = "block"
    # `max_out_len` 10 in the authors' code.
    template_openings: ClassVar[tuple[str, ...]] = OPENINGS
    template_lengths: ClassVar[tuple[int, ...]] = (10,) * len(OPENINGS)
    history_keys: ClassVar[Literal["edited", "solved"]] = "edited"
    """Keys stored in the history: read again on the edited model, or those of the solve."""
    history_residuals: ClassVar[bool] = False
    """Whether the history holds Σ RKᵀ in addition to Σ KKᵀ."""
    search_original: ClassVar[bool] = False
    """Whether targets are searched on the original weights, those at binding."""
    history_by_default: ClassVar[bool] = False
    """Whether ``keep_history`` is on by default; for the memory estimate."""

    def __init__(self, clamp: float = 0.75, keep_history: bool = False, **search: Any) -> None:
        super().__init__(clamp=clamp, **search)
        self.keep_history = keep_history
        self.past: KeyHistory | None = None
        self._original: dict[str, Tensor] = {}

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
        names = [self.view.parameter(layer) for layer in self.edited_layers]
        if self.search_original:
            handles = {name: weight(self.language_model, name) for name in names}
            self._original = {
                name: handle.raw().detach().clone() for name, handle in handles.items()
            }
        self.past = None
        if self.keep_history:
            device = self.view.embeddings.get_parameter("weight").device
            self.past = KeyHistory(self.edited_layers, self.history_residuals, device)

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Keep the keys of the edits in force, and of no other, to the bit."""
        if self.past is not None:
            self.past.follow(in_force, change)
            self._preserved.clear()

    def search(self, batch: EditBatch) -> Targets:
        """Search the target vectors, on the original weights if :attr:`search_original` is set.

        Args:
            batch: Requests that name their subjects.
        """
        with self._original_weights_in_place():
            return super().search(batch)

    @contextmanager
    def _original_weights_in_place(self) -> Iterator[None]:
        """Restore the original weights inside a ``with`` block; a no-op if none are stored."""
        raws = {name: weight(self.language_model, name).raw() for name in self._original}
        now = {name: raw.detach().clone() for name, raw in raws.items()}
        try:
            _copy_into(raws, self._original)
            yield
        finally:
            _copy_into(raws, now)

    # ------------------------------------------------------------------------------------- solving

    def residual_divisor(self, remaining: int) -> float:
        """Return the residual's divisor, given the number of layers left, this one included."""
        return float(remaining)

    def solve(
        self, layer: int, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Solve one layer's least-squares system; ridge regression unless overridden."""
        return least_squares(keys, residuals, self.preserved(layer))

    def factor_system(
        self,
        layer: int,
        moment: Float[Tensor, "f f"] | None,
        lam: float | None,
        ridge: float = 0.0,
        rows: Int[Tensor, " s"] | None = None,
    ) -> Preserved:
        """Factor a layer's system λC + Σ KKᵀ + μI (Cholesky); without C, λI takes its place.

        Args:
            layer: The layer.
            moment: C, or ``None`` for the identity.
            lam: λ; ``None``: the width of a key.
            ridge: μ.
            rows: Key entries (neurons) that are written; ``None``: all.
        """
        if lam is None:
            lam = float(weight(self.language_model, self.view.parameter(layer)).shape[1])
        scale = lam

        def factor(history: Tensor | None) -> Preserved:
            return Preserved.of(
                self._submatrix(moment, rows),
                scale,
                self._submatrix(history, rows),
                ridge + (scale if moment is None else 0.0),
                where=self.view.parameter(layer),
            )

        if self.past is None:
            return factor(None)
        # The written entries differ from batch to batch, so their factor is not cached.
        return (
            self.past.factor_with_keys(layer, factor)
            if rows is None
            else factor(self.past.keys(layer))
        )

    def _submatrix(self, matrix: Tensor | None, rows: Tensor | None) -> Tensor | None:
        """Return a matrix, or its submatrix of some entries, on the model's device."""
        if matrix is None:
            return None
        placed = matrix.to(self.language_model.device)
        return placed if rows is None else placed[rows][:, rows]

    def target(self, targets: Targets) -> Float[Tensor, "n d"]:
        """Return the target values from which :meth:`residual` is computed."""
        return targets.wanted.double()

    def residual(
        self, target: Float[Tensor, "n d"], bare: Sequence[TokenizedText]
    ) -> Float[Tensor, "n d"]:
        """Return the residual at each subject: target minus the current model's value."""
        return target - self.current_values(bare)

    def update(self, layer: int, solution: Solution) -> WeightUpdate:
        """Return a layer's weight update from its solution."""
        return LowRank(solution.left.float(), solution.right.float())

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the updates of all layers.

        Args:
            batch: The requests.
            targets: Their target vectors, for the output of the last edited block.
        """
        texts = self.key_texts(batch)
        with self.solve_layers(texts, self.target(targets)) as solved:
            history = self.history_entries(texts, solved)
        info = self.info(targets, solved.solutions)
        return Delta(batch.ids, self.by_parameter(solved.updates), info=info, history=history)

    @contextmanager
    def solve_layers(
        self, texts: Sequence[TokenizedText], target: Float[Tensor, "n d"]
    ) -> Iterator[LayerSolutions]:
        """Solve layer by layer; inside the ``with`` block the model has all updates applied.

        Args:
            texts: Every request in every template, the bare prompt of each first.
            target: Target values at each subject.
        """
        layers, solved = self.edited_layers, LayerSolutions()
        bare = texts[:: len(self.templates)]
        with ExitStack() as stack:
            for done, layer in enumerate(layers):
                solved.keys |= self.mean_keys(texts, [layer])
                rest = self.residual(target, bare) / self.residual_divisor(len(layers) - done)
                solved.residuals[layer] = rest
                with self.stage("solve"):
                    solution = self.solve(layer, solved.keys[layer].mT, rest.mT)
                update = self.update(layer, solution)
                solved.updates[layer] = update
                solved.solutions.append(solution)
                # Each layer is solved on the model with the updates of the layers below it.
                one = Delta((), self.by_parameter({layer: update}))
                stack.enter_context(one.applied(self.language_model))
            yield solved

    def current_values(self, bare: Sequence[TokenizedText]) -> Float[Tensor, "n d"]:
        """Return the current hidden states at each subject, at the layer and site of targets."""
        block = self.view.block(self.edited_layers[-1])
        return self.at_subjects(bare, block.name if self.site == "block" else block.mlp, "output")

    def mean_keys(self, texts: Sequence[TokenizedText], layers: Sequence[int]) -> dict[int, Tensor]:
        """Return keys per layer, (n, f): mean of the bare prompt's key and all other texts' mean.

        Args:
            texts: Every request in every template, the bare prompt of each first.
            layers: The layers, read in one pass.
        """
        names = {layer: self.view.down_projection(layer) for layer in layers}
        wanted: dict[str, Side] = dict.fromkeys(names.values(), "input")
        read = self.all_at_subjects(texts, wanted)
        return {layer: self._average_over_templates(read[name]) for layer, name in names.items()}

    def _average_over_templates(self, keys: Float[Tensor, "r f"]) -> Float[Tensor, "n f"]:
        grouped = keys.reshape(-1, len(self.templates), keys.shape[1])
        if len(self.templates) == 1:
            return grouped[:, 0]
        return torch.stack([grouped[:, 0], grouped[:, 1:].mean(1)]).mean(0)

    def history_entries(
        self, texts: Sequence[TokenizedText], solved: LayerSolutions
    ) -> dict[str, Tensor]:
        """Return a delta's history (keys, residuals); called while the updates are applied."""
        if not self.keep_history:
            return {}
        if self.history_keys == "solved":
            keys = solved.keys
        else:
            keys = self.mean_keys(texts, self.edited_layers)
        history = {f"keys/{layer}": value.float() for layer, value in keys.items()}
        if self.history_residuals:
            for layer, value in solved.residuals.items():
                history[f"residuals/{layer}"] = value.float()
        return history

    def by_parameter(self, updates: Mapping[int, WeightUpdate]) -> dict[str, WeightUpdate]:
        """Map layer updates to parameter names."""
        return {self.view.parameter(layer): update for layer, update in updates.items()}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: second moment, float64 factor, float64 history if kept."""
        history = 8 * len(layers) * view.intermediate_size**2 if cls.history_by_default else 0
        return super().memory_bytes(view, layers) + history


def _copy_into(raws: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, raw in raws.items():
            raw.copy_(values[name])
