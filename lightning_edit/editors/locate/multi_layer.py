"""MultiLayerEditor an edit over several layers: what MEMIT and its relatives share.

Each edited layer, lowest first, gets a part of the distance that is left between what the model
reads at the subjects and what it should read there, by least squares, on the model that the lower
layers have changed. A member of the family says how a layer's system looks, and whether keys of
earlier edits belong to it.

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
from lightning_edit.functional.solve import Preserved, Solution, least_squares
from lightning_edit.inference.hooks import Side
from lightning_edit.inference.suffix.forward import Site
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch


@dataclass
class Written:
    """What one pass over the layers gave, by layer.

    Args:
        updates: The update of each layer's down-projection.
        solutions: The solved systems.
        keys: The keys that were written at, (n, f).
        residuals: What each layer was to add at them, (n, d).
    """

    updates: dict[int, WeightUpdate] = field(default_factory=dict)
    solutions: list[Solution] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)


class MultiLayerEditor(LocateThenEdit, family=True):
    """Family of editors that spread a batch over consecutive layers, one least squares each.

    Args:
        clamp: Largest ‖δ‖ / ‖h₀‖ of the target search (0.75 in the authors' configs).
        keep_history: Whether the keys of the edits in force are preserved like corpus keys.
        search: Arguments of :class:`~lightning_edit.editors.locate.base.LocateThenEdit`.

    Note:
        An undo takes an edit's keys out of the history, so that later edits are solved without it.
        The updates of edits that were solved while it was in force stay as they were.
    """

    site: ClassVar[Site] = "block"
    # `max_out_len` 10 in the authors' code.
    template_openings: ClassVar[tuple[str, ...]] = OPENINGS
    template_lengths: ClassVar[tuple[int, ...]] = (10,) * len(OPENINGS)
    history_keys: ClassVar[Literal["edited", "solved"]] = "edited"
    """Keys that are remembered: read again on the edited model, or those that were solved for."""
    history_residuals: ClassVar[bool] = False
    """Whether Σ RKᵀ is remembered beside Σ KKᵀ."""
    search_original: ClassVar[bool] = False
    """Whether targets are searched on the weights that the model had when it was bound."""
    history_by_default: ClassVar[bool] = False
    """For the memory estimate: whether there is a history unless the user says otherwise."""

    def __init__(self, clamp: float = 0.75, keep_history: bool = False, **search: Any) -> None:
        super().__init__(clamp=clamp, **search)
        self.keep_history = keep_history
        self.past: KeyHistory | None = None
        self._original: dict[str, Tensor] = {}

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return two or more blocks in the lower third (published: Llama 4 to 8 of 32).

        The last block is never one of them: a target there could not act on later tokens. On the
        embedded model of five blocks, 0 and 1 write 90 % of 20 facts, 0 to 2 only 65 %.
        """
        top = num_blocks - 1
        first = int(0.13 * top)
        last = max(0, min(top - 1, max(first + 1, round(0.26 * top))))
        return list(range(min(first, last), last + 1))

    # ------------------------------------------------------------------------------------ history

    def on_bind(self) -> None:
        """Begin an empty history, beside what every locate-then-edit method prepares."""
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

    def remember(self, delta: Delta) -> None:
        """Add the keys of a committed edit to the history."""
        if self.past is not None:
            self.past.add(delta)
            self._preserved.clear()

    def forget(self, delta: Delta) -> None:
        """Take the keys of an undone edit out of the history, to the bit."""
        if self.past is not None:
            self.past.remove(delta)
            self._preserved.clear()

    def recall(self, delta: Delta) -> None:
        """Note an edit whose keys a checkpoint has restored."""
        if self.past is not None:
            self.past.note(delta)
            self._preserved.clear()

    def search(self, batch: EditBatch) -> Targets:
        """Find every request's target vector, on the original weights where the method says so.

        Args:
            batch: Requests that name their subjects.
        """
        with self._rewound():
            return super().search(batch)

    @contextmanager
    def _rewound(self) -> Iterator[None]:
        """Give the model its original bits for a while; nothing where none are kept."""
        raws = {name: weight(self.language_model, name).raw() for name in self._original}
        now = {name: raw.detach().clone() for name, raw in raws.items()}
        try:
            _copy(raws, self._original)
            yield
        finally:
            _copy(raws, now)

    # ------------------------------------------------------------------------------------- solving

    def residual_divisor(self, remaining: int) -> float:
        """Return by what the distance is divided when so many layers are left, this one counted."""
        return float(remaining)

    def solve(
        self, layer: int, keys: Float[Tensor, "f n"], residuals: Float[Tensor, "d n"]
    ) -> Solution:
        """Find a layer's update; ridge least squares unless a method says otherwise."""
        return least_squares(keys, residuals, self.preserved(layer))

    def factored(
        self,
        layer: int,
        moment: Float[Tensor, "f f"] | None,
        lam: float | None,
        ridge: float = 0.0,
        rows: Int[Tensor, " s"] | None = None,
    ) -> Preserved:
        """Factor λC + Σ KKᵀ + μI; with the identity for C, λI takes its place.

        Args:
            layer: The layer.
            moment: C, or ``None`` for the identity.
            lam: λ; ``None``: the width of a key.
            ridge: μ.
            rows: Entries of a key that are written; ``None``: all.
        """
        if lam is None:
            lam = float(weight(self.language_model, self.view.parameter(layer)).shape[1])
        scale = lam

        def of(history: Tensor | None) -> Preserved:
            return Preserved.of(
                self._block(moment, rows),
                scale,
                self._block(history, rows),
                ridge + (scale if moment is None else 0.0),
                where=self.view.parameter(layer),
            )

        if self.past is None:
            return of(None)
        # Which entries are written changes from batch to batch, so no factor of theirs is kept.
        return self.past.factored(layer, of) if rows is None else of(self.past.keys(layer))

    def _block(self, matrix: Tensor | None, rows: Tensor | None) -> Tensor | None:
        """Return a matrix, or its rows and columns of some entries, beside the model."""
        if matrix is None:
            return None
        placed = matrix.to(self.language_model.device)
        return placed if rows is None else placed[rows][:, rows]

    def target(self, targets: Targets) -> Float[Tensor, "n d"]:
        """Return what :meth:`residual` measures the distance to."""
        return targets.wanted.double()

    def residual(
        self, target: Float[Tensor, "n d"], bare: Sequence[TokenizedText]
    ) -> Float[Tensor, "n d"]:
        """Return what is missing at each subject in the model as it is now."""
        return target - self.reading(bare)

    def update(self, layer: int, solution: Solution) -> WeightUpdate:
        """Return what is added to a layer's weight."""
        return LowRank(solution.left.float(), solution.right.float())

    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Return the updates of all layers.

        Args:
            batch: The requests.
            targets: Their target vectors, for the output of the last edited block.
        """
        texts = self.key_texts(batch)
        with self.solve_layers(texts, self.target(targets)) as written:
            history = self.to_remember(texts, written)
        info = self.info(targets, written.solutions)
        return Delta(batch.ids, self.named(written.updates), info=info, history=history)

    @contextmanager
    def solve_layers(
        self, texts: Sequence[TokenizedText], target: Float[Tensor, "n d"]
    ) -> Iterator[Written]:
        """Solve layer after layer; inside the ``with`` block the model has all their updates.

        Args:
            texts: The requests behind every template, the bare prompt of each first.
            target: What the model should read at each subject.
        """
        layers, written = self.edited_layers, Written()
        bare = texts[:: len(self.templates)]
        with ExitStack() as stack:
            for done, layer in enumerate(layers):
                written.keys |= self.keys_of(texts, [layer])
                rest = self.residual(target, bare) / self.residual_divisor(len(layers) - done)
                written.residuals[layer] = rest
                with self.stage("solve"):
                    solution = self.solve(layer, written.keys[layer].mT, rest.mT)
                update = self.update(layer, solution)
                written.updates[layer] = update
                written.solutions.append(solution)
                # The layers above are solved on the model that the lower ones have changed.
                one = Delta((), self.named({layer: update}))
                stack.enter_context(one.applied(self.language_model))
            yield written

    def reading(self, bare: Sequence[TokenizedText]) -> Float[Tensor, "n d"]:
        """Return what the model now reads at each subject, where the targets are set."""
        block = self.view.block(self.edited_layers[-1])
        return self.at_subjects(bare, block.name if self.site == "block" else block.mlp, "output")

    def keys_of(self, texts: Sequence[TokenizedText], layers: Sequence[int]) -> dict[int, Tensor]:
        """Return the keys of layers, (n, f): half the bare prompt's, half the mean of all others'.

        Args:
            texts: The requests behind every template, the bare prompt of each first.
            layers: The layers, read in one pass.
        """
        names = {layer: self.view.down_projection(layer) for layer in layers}
        wanted: dict[str, Side] = dict.fromkeys(names.values(), "input")
        read = self.all_at_subjects(texts, wanted)
        return {layer: self._mean(read[name]) for layer, name in names.items()}

    def _mean(self, keys: Float[Tensor, "r f"]) -> Float[Tensor, "n f"]:
        grouped = keys.reshape(-1, len(self.templates), keys.shape[1])
        if len(self.templates) == 1:
            return grouped[:, 0]
        return torch.stack([grouped[:, 0], grouped[:, 1:].mean(1)]).mean(0)

    def to_remember(self, texts: Sequence[TokenizedText], written: Written) -> dict[str, Tensor]:
        """Return what goes into a delta for the history; the model has the updates now."""
        if not self.keep_history:
            return {}
        if self.history_keys == "solved":
            keys = written.keys
        else:
            keys = self.keys_of(texts, self.edited_layers)
        history = {f"keys/{layer}": value.float() for layer, value in keys.items()}
        if self.history_residuals:
            for layer, value in written.residuals.items():
                history[f"residuals/{layer}"] = value.float()
        return history

    def named(self, updates: Mapping[int, WeightUpdate]) -> dict[str, WeightUpdate]:
        """Name updates by the parameter they belong to."""
        return {self.view.parameter(layer): update for layer, update in updates.items()}

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate memory beside the model: moment, float64 factor, float64 history if kept."""
        history = 8 * len(layers) * view.intermediate_size**2 if cls.history_by_default else 0
        return super().memory_bytes(view, layers) + history


def _copy(raws: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, raw in raws.items():
            raw.copy_(values[name])
