"""Locate-then-edit base class: target search at the subject, closed-form update of an MLP layer.

A subclass names its pieces: where target vectors are added (:attr:`LocateThenEdit.target_search`)
and how a layer is solved (:attr:`LocateThenEdit.solver`). How targets become an update is its
:meth:`LocateThenEdit.write`. Context templates, key statistics and the search itself are here.

Axis names: ``n`` -- edits; ``r`` -- rows, an edit under one context template; ``d`` -- hidden
width; ``f`` -- width of a key, the down-projection's input.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.context_templates import sample_templates, with_bare_prompt
from lightning_edit.editors.locate.edited_layer import EditedLayer
from lightning_edit.editors.locate.effect import (
    NOT_SEARCHED,
    EffectWarnings,
    fell_short,
    measure_effect,
    missed,
    not_searched,
    rivalled,
    rivals,
)
from lightning_edit.editors.locate.original_weights import OriginalWeights
from lightning_edit.editors.locate.prompts import (
    KlPosition,
    essence_texts,
    merge_watched,
    rewriting_texts,
    texts_in_forms,
)
from lightning_edit.editors.locate.search_objective import Objective, TargetSearch
from lightning_edit.editors.locate.solver import Solver
from lightning_edit.editors.locate.target_search import Loss, search_targets
from lightning_edit.editors.locate.targets import Targets
from lightning_edit.editors.locate.widening import FIRST_CLAMP, search_widening
from lightning_edit.editors.one_by_one import edit_one_by_one
from lightning_edit.editors.stronger import LOWER, number_of, to_write_more
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.solve import Solution
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.hooks import Side
from lightning_edit.inference.packed.block_inputs import BlockInputs
from lightning_edit.inference.suffix.forward import texts_per_pass
from lightning_edit.inference.suffix.write_path import WritePath, find_write_paths
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import ModelView
from lightning_edit.statistics.cache import files_for, moments_in
from lightning_edit.types import EditBatch

#: Weight of ‖δ‖ / ‖h₀‖² in the configs of ROME's and MEMIT's authors.
PUBLISHED_DECAY = 0.5


class LocateThenEdit(Editor, family=True):
    """Family of locate-then-edit methods: target search at the subject, then least squares.

    Args:
        layers: Blocks to edit, lowest first; ``None``: by depth, see ``default_layers``.
        statistics: Second moments (covariance) of the edited layers' keys: ``auto``: from the cache
            (the embedded default model collects its own); ``identity``: none, all directions weigh
            the same; else a file written by ``lightning-edit stats --out``.
        steps: Forward passes of the target search; the last one does not step. 20 for GPT-2 XL and
            GPT-J (ROME's configs), 25 for Llama (EasyEdit).
        lr: Adam's learning rate in the search. ``auto``: beside a bound by rule the rate that takes
            a vector to its bound in
            :data:`~lightning_edit.editors.locate.search_objective.STEPS_TO_BOUND` steps, of every
            request and width its own; beside a bound given as a number the authors' (0.5; PMET's
            0.2).
        kl_factor: Weight of the KL divergence on "{subject} is a" (0.0625 in the authors' configs).
        weight_decay: Weight of ‖δ‖ / ‖h₀‖² (0.5 for GPT-2, 1e-3 for Llama in EasyEdit). ``auto``:
            beside a bound by rule
            :data:`~lightning_edit.editors.locate.search_objective.DECAY` · ‖δ‖ / ‖h₀‖, the same in
            states of every scale; beside a number the authors' 0.5.
        clamp: Largest ‖δ‖ / ‖h₀‖ (ROME 4, MEMIT 0.75). ``auto``: 0.75 (ROME and R-ROME, whose h₀
            is an MLP's output alone: 3), and for a request whose answer it keeps out of reach
            twice as much, up to 6, see :mod:`~lightning_edit.editors.locate.widening`.
        threshold: Loss below which a search ends (0.05 in the authors' code).
        kl_position: Position of the KL divergence: ``subject_last`` as in the authors' code, or
            ``prompt_end`` as in the paper.
        context_templates: Texts with one ``{}`` for the prompt; ``None``: sampled from the model
            itself when the editor is bound.
        seed: Seed of the sampled templates.
        rows_per_pass: Most texts per forward pass; bounds memory, changes no result. ``None``: on a
            CPU 32 (wide or deep models) to 448 (small ones), so that about 1 GiB of activations is
            stored; else 1024.

    Note:
        As in the authors' code and unlike the papers, the weight decay is linear in ‖δ‖, and the KL
        divergence is read at the subject, where the words after it have no effect.
    """

    needs_statistics: ClassVar[bool] = True
    needs_subject: ClassVar[bool] = True
    both_forms: ClassVar[bool] = True
    decoder_only_because: ClassVar[str] = (
        "it writes into an MLP at the subject's last token, in the stack that predicts the answer, "
        "while here the subject goes through the encoder, every token of which sees the whole "
        "prompt, and the answer comes from the decoder, which has no token of the subject"
    )
    target_search: ClassVar[TargetSearch] = TargetSearch("mlp")
    """Where target vectors are added, and to which weights."""
    first_clamp: ClassVar[float] = FIRST_CLAMP
    """First bound of ``clamp="auto"``."""
    published_lr: ClassVar[float] = 0.5
    """Learning rate of the search in the authors' configs."""
    solver: Solver
    """How a layer's keys and residuals become an update."""
    one_layer: ClassVar[bool] = False
    """Whether the method edits a single layer only."""
    template_openings: ClassVar[tuple[str, ...]] = ()
    """First words of the sampled templates; an empty string starts from the BOS token."""
    template_lengths: ClassVar[tuple[int, ...]] = ()
    """Length of each sampled template in tokens."""

    def __init__(
        self,
        layers: list[int] | None = None,
        statistics: str = "auto",
        steps: int = 20,
        lr: float | Literal["auto"] = "auto",
        kl_factor: float = 0.0625,
        weight_decay: float | Literal["auto"] = "auto",
        clamp: float | Literal["auto"] = "auto",
        threshold: float = 0.05,
        kl_position: KlPosition = "subject_last",
        context_templates: list[str] | None = None,
        seed: int = 0,
        rows_per_pass: int | None = None,
    ) -> None:
        super().__init__()
        if rows_per_pass is not None and rows_per_pass < 1:
            raise ValueError(f"rows_per_pass counts texts, expected 1 or more, got {rows_per_pass}")
        self.layers = layers
        self.statistics = statistics
        self.clamp: float | Literal["auto"] = clamp
        first, rate, decay = clamp, lr, weight_decay
        if first == "auto":
            first = self.first_clamp
        else:
            rate = self.published_lr if rate == "auto" else rate
            decay = PUBLISHED_DECAY if decay == "auto" else decay
        self.objective = Objective(steps, rate, kl_factor, decay, first, threshold)
        self.kl_position = kl_position
        self.context_templates = (
            None if context_templates is None else with_bare_prompt(context_templates)
        )
        self.seed = seed
        self.rows_per_pass = rows_per_pass
        self.templates: list[str] = []
        self.bound_layers: dict[int, EditedLayer] = {}
        self.paths: dict[int, WritePath] = {}
        self.effect_warnings = EffectWarnings()
        self._original: OriginalWeights | None = None

    # ------------------------------------------------------------------------------------ binding

    @property
    def edited_layers(self) -> list[int]:
        """The edited layers (block indices) of the bound model."""
        if self.layers is None:
            return self.default_layers(self.view.num_blocks)
        return sorted(self.layers)

    def on_bind(self) -> None:
        """Load the key statistics and sample context templates, both from the unedited model."""
        model, tokenizer = self.language_model, self.tokenizer
        layers = self.edited_layers
        if not layers:
            raise ConfigError(
                f"{type(self).__name__} got no layers; give some, or leave `layers` out"
            )
        if self.one_layer and len(layers) != 1:
            raise ConfigError(
                f"{type(self).__name__} edits one layer, got layers {layers}; give one of them, or "
                "use an editor for several, such as MEMIT"
            )
        for layer in layers:
            self.view.block(layer)
        names = {layer: self.view.parameter(layer) for layer in layers}
        files = files_for(model, tokenizer, layers, self.statistics)
        moments = moments_in(files, self.view, layers)
        self.bound_layers = {
            layer: EditedLayer(layer, names[layer], model, moments[layer]) for layer in layers
        }
        # A vector at the MLP's output is written as it is; one at the block's must get there.
        self.paths = find_write_paths(self.view, layers) if self.target_search.site != "mlp" else {}
        self.solver.on_bind(self.bound_layers, files, self.view)
        self.chose(self.solver.chosen(self.bound_layers))
        self.effect_warnings = EffectWarnings()
        self._original = None
        if self.target_search.weights == "original":
            self._original = OriginalWeights(model, list(names.values()))
        if self.context_templates is not None:
            self.templates = list(self.context_templates)
        else:
            self.templates = sample_templates(
                model, tokenizer, self.template_openings, self.template_lengths, self.seed
            )

    def get_extra_state(self) -> dict[str, Any]:
        """Save the context templates: at a resume the model may be edited already."""
        return {"templates": self.templates}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the context templates from a checkpoint."""
        self.templates = list(state["templates"])

    # ------------------------------------------------------------------------------------ editing

    @abstractmethod
    def write(self, batch: EditBatch, targets: Targets) -> Delta:
        """Solve for the weight update that writes target vectors found on the current model.

        The model is unchanged, bit for bit, when this returns.

        Args:
            batch: The requests.
            targets: Their target vectors, in the same order.
        """

    def edit(self, batch: EditBatch) -> Delta:
        """Compute the update of a batch: target search, then the closed-form solve.

        Args:
            batch: Requests that name their subjects.

        Returns:
            Low-rank updates of the edited layers' down-projections.

        Raises:
            SubjectNotFoundError: If a request names no subject.
            SolveError: If the least-squares system has no solution.
        """
        if not self.batched and len(batch) > 1:
            delta = edit_one_by_one(self, batch, self._search_and_write)
        else:
            delta = self._search_and_write(batch)
        self.effect_warnings.check(type(self).__name__, [delta], self.missed_advice())
        return delta

    def missed_advice(self) -> str:
        """Return what helps edits that did not arrive at their targets, a sentence."""
        helps = ["edit fewer layers or one"] if len(self.edited_layers) > 1 else []
        weights = [name for name in LOWER if number_of(self, name) is not None]
        helps += [f"lower the weight of what is preserved ({', '.join(weights)})"] * bool(weights)
        if self.target_search.site != "mlp":
            helps.append("use a method that aims at the MLP's output, such as RROME")
        if not helps:
            helps.append("edit another layer, which `lightning-edit sweep` finds")
        text = ", or ".join(helps)
        return f"{text[0].upper()}{text[1:]}."

    def advice_on(self, missing: Set[str], written: Sequence[Delta]) -> str:
        """Return what to turn; a stronger search does not help where its targets were missed.

        Args:
            missing: Ids of edits whose answer the model does not give.
            written: Their deltas, and others.
        """
        broken = missing & not_searched(written)
        if missing and missing == broken:
            return f"Nothing was searched: {NOT_SEARCHED}"
        missing -= broken
        if missing <= rivalled(written):
            return "Each stands at nearly the key of another edit: leave one of the two out."
        return self.missed_advice() if missing <= missed(written) else to_write_more(self)

    def _search_and_write(self, batch: EditBatch) -> Delta:
        # Validation loops run in inference mode, which builds no autograd graph.
        with torch.inference_mode(False), torch.enable_grad():
            with self.stage("search"):
                targets = self.search(batch)
            return self.write(batch, targets)

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Compute independent single-edit updates, with one batched target search for all.

        Args:
            batch: Requests that name their subjects.

        Returns:
            One delta per request, in order.
        """
        deltas = self._search_and_write_each(batch)
        self.effect_warnings.check(type(self).__name__, deltas, self.missed_advice())
        return deltas

    def _search_and_write_each(self, batch: EditBatch) -> list[Delta]:
        with torch.inference_mode(False), torch.enable_grad():
            with self.stage("search"):
                targets = self.search(batch)
            parts = enumerate(batch.split())
            return [self.write(part, targets.only(number)) for number, part in parts]

    def search(self, batch: EditBatch) -> Targets:
        """Search the target vector of every request on the current model.

        Args:
            batch: Requests that name their subjects.
        """
        self.subject_positions(batch)
        texts = merge_watched(
            texts_in_forms(self.prompts, batch, self.templates),
            essence_texts(self.prompts, batch, self.kl_position),
        )
        return self.search_texts(texts, self.objective)

    def search_texts(
        self,
        texts: Sequence[TokenizedText],
        objective: Objective,
        loss_for: Callable[[Sequence[TokenizedText]], Loss] | None = None,
    ) -> Targets:
        """Search target vectors at the method's layer, site and weights.

        Arguments and result: :func:`search_targets`.
        """
        layer, rows, site = self.edited_layers[-1], self._rows_per_pass, self.target_search.site
        normed = site == "block" and self.paths[layer].norm is not None

        def search(some: Sequence[TokenizedText], within: Objective) -> Targets:
            return search_targets(
                self.view,
                some,
                layer,
                site,
                within,
                rows,
                loss_for,
                self.progress,
                through_mlp=normed,
                ranks=self.ranks,
            )

        with nullcontext() if self._original is None else self._original.in_place():
            if self.clamp == "auto":
                found, widest = search_widening(search, texts, objective)
            else:
                found, widest = search(texts, objective), objective.clamp
        if self.clamp == "auto":
            self.chose({"clamp": widest})
        self.chose(objective.chosen(found.norms, found.initial.shape[1]))
        return found

    @property
    def _rows_per_pass(self) -> int:
        if self.rows_per_pass is not None:
            return self.rows_per_pass
        if self.language_model.device.type != "cpu":
            return 1024
        return texts_per_pass(self.view)

    # ------------------------------------------------------------------------------------- pieces

    @property
    def site_module(self) -> str:
        """Module whose output at the subject is to be the target: a block or a down-projection."""
        block = self.view.block(self.edited_layers[-1])
        return block.name if self.target_search.site == "block" else block.mlp_down

    @property
    def written(self) -> slice:
        """Entries of a target vector that are written: of one for attention and MLP the MLP's."""
        return slice(-self.view.hidden_size, None)

    @property
    def texts_per_request(self) -> int:
        """Texts of a request in search and keys: its forms (chat, plain) in every template."""
        return len(self.prompts.forms) * len(self.templates)

    def key_texts(self, batch: EditBatch) -> list[TokenizedText]:
        """Return the texts for keys: every request in every form and template.

        They are cut after the subject; there are :attr:`texts_per_request` of each request.
        """
        texts = texts_in_forms(self.prompts, batch, self.templates)
        return [text.until_subject() for text in texts]

    @torch.no_grad()
    def at_subjects(
        self, texts: Sequence[TokenizedText], module: str, side: Side
    ) -> Float[Tensor, "r w"]:
        """Read a module's input or output (hidden states) at the last token of every text.

        Args:
            texts: Texts that end with the subject.
            module: Dotted name of the module.
            side: ``input`` or ``output``.

        Returns:
            One row per text, in float64.
        """
        return self.all_at_subjects(texts, {module: side})[module]

    @torch.no_grad()
    def all_at_subjects(
        self,
        texts: Sequence[TokenizedText],
        wanted: Mapping[str, Side],
        inputs: BlockInputs | None = None,
    ) -> dict[str, Tensor]:
        """Read hidden states of several modules in one pass; see :meth:`at_subjects`.

        Args:
            texts: Texts that end with the subject.
            wanted: ``input`` or ``output``, by dotted name of the module.
            inputs: What earlier readings of the same texts have kept of the blocks below.

        Returns:
            By module, one row per text, in float64.
        """
        with self.stage("keys"):
            return read_last(self.view, texts, wanted, self._rows_per_pass, self.ranks, inputs)

    def info(
        self, batch: EditBatch, targets: Targets, solutions: Sequence[Solution]
    ) -> dict[str, Any]:
        """Return the diagnostics of search, solve and effect that are recorded with a delta.

        Call it while the updates are applied: it looks at the edited model, in one pass over the
        bare prompts.

        Args:
            batch: The requests.
            targets: Their target vectors.
            solutions: The solved systems.
        """
        with self.stage("solve"):
            bare = rewriting_texts(self.prompts, batch, ["{}"])
            effect = measure_effect(
                self.view, bare, targets, self.site_module, self.written, self._rows_per_pass
            )
        return effect | {
            "rivals": rivals(targets.keys, targets.delta, fell_short(effect)),
            "loss": targets.losses,
            "steps": targets.steps,
            "unwritten": [solution.unwritten for solution in solutions],
            "condition": [solution.condition for solution in solutions],
            "templates": self.templates,
            **self.chosen_info(),
        }

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: a float32 second moment and a float64 factor per layer."""
        return len(layers) * view.intermediate_size**2 * (4 + 8)
