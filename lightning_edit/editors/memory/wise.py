"""WISE: Wang et al., WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of LLMs.

NeurIPS 2024, arXiv 2405.14768.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.activations import ACT2FN

from lightning_edit.editors.locate.context_templates import sample_templates, with_bare_prompt
from lightning_edit.editors.memory.base import MemoryEditor, Projection, TrialAdapter
from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS, choose_neutral
from lightning_edit.editors.memory.output_scale import Norms, neutral_norms
from lightning_edit.editors.memory.side_memory import (
    Activation,
    SideMemory,
    SideMemoryAdapter,
    activations,
)
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.side_memory import margin_loss
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.module_adapter import ModuleAdapter, attached
from lightning_edit.inference.suffix.upper_blocks import UpperBlocks
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, EditRequest

#: First words of the context templates in the authors' code.
OPENINGS = ("I", "You", "Because", "Yes", "Q: ")
#: Tokens of the templates that begin with each of them.
LENGTHS = (5, 10)
#: Cells of the matrix for each edit of a shard in the authors' runs: a mask of 0.2 of Llama 2's
#: 4096 x 11008, 500 edits.
_CELLS_PER_EDIT = 0.2 * 4096 * 11008 / 500
#: Edits of a shard, where its size is not given: at least, at most (the authors' save_freq).
_FEWEST, _MOST = 2, 500
#: An edit stops once its loss is this low and has changed by no more than this.
_LOW, _STILL = 0.02, 1e-4
#: ``lr="auto"``: what a step of the margin loss adds to a prompt's activation, as a share of the
#: norm of the projection's own output.
STEP_REACH = 0.25
#: Margins by rule: what the margin loss counts an activation of the norm of the projection's own
#: output as, beside nats of the answer.
MARGIN_UNIT = 4.0


@dataclass(frozen=True)
class TrainingRows:
    """Texts on which a side memory is trained for one edit.

    Args:
        rows: Edited texts, then unrelated ones, which have no answer.
        edited: Number of edited texts, the bare prompt first.
        scope: Tokens over which the activation of each text is averaged.
    """

    rows: AnswerRows
    edited: int
    scope: Bool[Tensor, "b t"]

    def levels(self, each: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """Return the mean activation of each text.

        Args:
            each: Activation of every token.
        """
        return (each * self.scope).sum(1) / self.scope.sum(1)

    def answer_loss(self, nll: Float[Tensor, " a"]) -> Float[Tensor, ""]:
        """Return the mean over the edited texts of their answers' mean negative log-likelihood.

        Args:
            nll: Of every answer token, row after row.
        """
        return self.rows.per_row(nll)[: self.edited].mean()


class WISE(MemoryEditor[SideMemory]):
    """WISE: a side copy of one down-projection is fine-tuned, and prompts that activate it read it.

    The activation of a prompt is the mean over its tokens of how far the side copy's output lies
    from the original's. A margin loss keeps it high on edited prompts and low on unrelated text; a
    prompt above the threshold, a share of the lowest activation of any edit, reads the side copy
    for its whole answer. Edits of one shard change a random subspace (mask) of the matrix; full
    shards merge by TIES.

    Args:
        layer: Block with the side memory; ``None``: by depth, see ``default_layers``.
        projection: MLP projection in it; the authors' code has ``up`` (c_fc) for GPT-2.
        steps: Most optimiser steps on an edit (70; 30 to 70 in EasyEdit).
        lr: Learning rate of SGD; the authors have 1.0 (Llama 2) and 0.9 (Llama 3). ``auto``: a
            step adds to a prompt's activation :data:`STEP_REACH` of the norm of the projection's
            own output, on neutral text.
        margins: Margins α, β, γ of the activation; (5, 20, 10) for Llama 2. ``None``: in the same
            proportion, with β equal to ``beta_share`` of the norm of the projection's own output
            on neutral text, since a small model's outputs are small.
        beta_share: See ``margins``.
        act_ratio: Share of the lowest activation of a memory's edits that is the threshold (0.88;
            0.5 for Llama 3). A lower one reaches more rewordings, and more unrelated prompts.
        density: Share ρ of the matrix that a shard may change (0.2).
        norm_constraint: Largest change of any single weight (1.0); ``None``: no limit. ``auto``:
            beside a rate by rule 1.0 for a matrix in units of the norm of the projection's output
            over that of its input, both on neutral text; beside a number the authors' 1.0.
        weight_decay: SGD's weight decay (1e-5), of the cells that the shard may change; in the
            authors' code it shrinks all others too, and with them the unedited model.
        shard_size: Edits per shard (save_freq, 500). ``None``: as many as have the room that they
            have in the authors' Llama 2, 500 there: two of the embedded model, 10 of one with 135 M
            parameters.
        shards_per_memory: Shards that merge into one memory (merge_freq / save_freq, 2).
        memories: ``retrieve``: several memories, the one with the largest activation is read.
            ``merge``: all shards are merged into one.
        ties_density: Share of its entries that a shard keeps in a merge (0.53).
        activation: ``weights``: ‖A(x)(W' − W)‖, the paper's formula. ``outputs``: the norm of the
            difference after the model's nonlinearity, as in the authors' code.
        unrelated: Texts for the margin loss; ``None``: the hundred of
            :data:`~lightning_edit.editors.memory.neutral_texts.NEUTRAL_TEXTS`. The authors have
            locality questions of other facts; a request's own probes score the edit and are not
            read.
        templates: Context templates, each with one ``{}``; ``None``: ten, sampled from the model.
        seed: Seed of masks and templates.

    Note:
        An edit trains on top of those before it in its shard, as fine-tuning does, and stores its
        own change of the shard's cells. Undoing the last edit is exact; undoing another takes its
        change out of the sum, while later ones keep what they learnt beside it. A new edit goes to
        the first shard with room.

        Defaults that are not the published ones (lr 1.0, shard_size 500, margins of Llama 2 with
        weight 1) are for the sake of models smaller than 7 B; give those for one of that size.
        After a sequence of 20 facts at lr 0.1, with the margin loss in units of the activation, the
        embedded model answered 17 of them, 37 of 80 rewordings and 170 of 170 neighbours; at 0.02
        it answered 6, since an edit ended before its activation had reached the margin. Of eight
        facts written into SmolLM2 (135 M) at lr 0.1 with act_ratio 0.7 seven were answered, and
        nine of twelve unrelated prompts, most of them of the same relations, answered as before.
    """

    def __init__(
        self,
        layer: int | None = None,
        projection: Projection = "down",
        steps: int = 70,
        lr: float | Literal["auto"] = "auto",
        margins: tuple[float, float, float] | None = None,
        beta_share: float = 1.0,
        act_ratio: float = 0.88,
        density: float = 0.2,
        norm_constraint: float | Literal["auto"] | None = "auto",
        weight_decay: float = 1e-5,
        shard_size: int | None = None,
        shards_per_memory: int = 2,
        memories: Literal["retrieve", "merge"] = "retrieve",
        ties_density: float = 0.53,
        activation: Activation = "weights",
        unrelated: list[str] | None = None,
        templates: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if unrelated == []:
            raise ValueError("WISE needs a text in unrelated, got none; leave it out, or give one")
        size = 1 if shard_size is None else shard_size
        given = 1.0 if lr == "auto" else lr
        if steps < 1 or given <= 0 or not 0 < density <= 1 or size < 1 or shards_per_memory < 1:
            raise ValueError(
                "WISE needs steps, shard_size and shards_per_memory of at least 1, lr auto or > 0 "
                f"and a density in (0, 1], got {steps}, {size}, {shards_per_memory}, {lr}, "
                f"{density}"
            )
        self.layer = layer
        self.projection: Projection = projection
        self.steps = steps
        self.lr: float | Literal["auto"] = lr
        self.margins = margins
        self.beta_share = beta_share
        self.act_ratio = act_ratio
        self.density = density
        if norm_constraint == "auto" and lr != "auto":
            norm_constraint = 1.0
        self.norm_constraint: float | Literal["auto"] | None = norm_constraint
        self.weight_decay = weight_decay
        self.shard_size = shard_size
        self.shards_per_memory = shards_per_memory
        self.memories = memories
        self.ties_density = ties_density
        self.activation: Activation = activation
        self.unrelated = unrelated
        self.templates = None if templates is None else with_bare_prompt(templates)
        self.seed = seed

    @property
    def block(self) -> int:
        """Number of the block with the side memory, in the bound model."""
        return self.default_layers(self.view.num_blocks)[0] if self.layer is None else self.layer

    @property
    def module(self) -> str:
        """Dotted name of the projection with the side memory."""
        return self.site(self.block, self.projection)

    def on_bind(self) -> None:
        """Prepare the runtime; masks and templates are made when they are needed."""
        self._masks: dict[int, Tensor] = {}
        self._sampled: list[str] | None = None
        self._norms: Norms | None = None
        super().on_bind()

    def empty_memory(self) -> SideMemory:
        """Return a side memory without edits; checks that its place exists."""
        d_out, d_in = weight(self.language_model, f"{self.module}.weight").shape
        per_memory = 0 if self.memories == "merge" else self.shards_per_memory
        size = self.shard_size
        if size is None:
            room = round(self.density * d_out * d_in / _CELLS_PER_EDIT)
            size = min(max(room, _FEWEST), _MOST)
        return SideMemory(self.cells, (d_out, d_in), size, per_memory, self.ties_density)

    def adapters(self, memory: SideMemory) -> Mapping[str, ModuleAdapter]:
        """Return the side memories' adapter."""
        return {
            self.module: SideMemoryAdapter(
                memory.memories(), self.act_ratio, self.activation, self.nonlinearity
            )
        }

    @property
    def nonlinearity(self) -> Callable[[Tensor], Tensor]:
        """Activation function of the model's MLPs."""
        config: Any = self.language_model.config.get_text_config()
        named = ("hidden_act", "activation_function", "hidden_activation", "activation")
        found = [getattr(config, name) for name in named if getattr(config, name, None)]
        function: Callable[[Tensor], Tensor] = ACT2FN[found[0] if found else "gelu"]
        return function

    def cells(self, shard: int) -> Int[Tensor, " c"]:
        """Return the flat indices of the entries of the matrix that a shard may change.

        Args:
            shard: Number of the shard.
        """
        if shard not in self._masks:
            shape = weight(self.language_model, f"{self.module}.weight").shape
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + shard)
            drawn = torch.rand(shape[0] * shape[1], generator=generator) < self.density
            self._masks = {shard: drawn.nonzero().squeeze(1)} | dict(
                list(self._masks.items())[:1]  # two shards at most: a mask is as large as the layer
            )
        return self._masks[shard]

    # ------------------------------------------------------------------------------------ training

    def learn(self, part: EditBatch, memory: SideMemory) -> Delta:
        """Train the side matrix of the present shard on a request."""
        texts = self.training_rows(part.requests[0], part.seed)
        margins = self.margins or self._calibrated()
        shard = memory.next_shard
        device = texts.rows.ids.device
        cells = self.cells(shard).to(device)
        before = memory.shard(shard).update.float().to(device)
        update, levels, losses = self._train(texts, before, cells, margins)
        values = (update - before).flatten()[cells]
        state = {
            "values": values[None],
            "shard": torch.tensor([shard]),
            "activation": levels[:1].float(),
        }
        info = {
            "loss": losses[-1],
            "steps": len(losses),
            "activation_edited": float(levels[: texts.edited].mean()),
            "activation_unrelated": float(levels[texts.edited :].mean()),
            **self.chosen_info(),
        }
        return Delta(part.ids, state=state, info=info)

    def training_rows(self, request: EditRequest, seed: int) -> TrainingRows:
        """Return the texts of an edit: the prompt in every context, and unrelated text.

        Args:
            request: The request.
            seed: Seed of the edit.
        """
        contexts = [
            replace(
                request,
                prompt=template.replace("{}", request.prompt),
                subject=None,
                subject_start=None,
            )
            for template in self._templates()
        ]
        encoded = encode_batch(self.prompts, contexts, seed).encoded
        rows: list[AnswerRow] = [(one.prompt_ids, one.target_ids) for one in encoded]
        rows.append((self.prompts.prompts([self.unrelated_text(request, seed)])[0], ()))
        padded = AnswerRows.pad(rows, self.input_device)
        lengths = torch.tensor([len(prompt) for prompt, _ in rows], device=padded.ids.device)
        steps = torch.arange(padded.ids.shape[1], device=padded.ids.device)
        return TrainingRows(padded, len(encoded), steps < lengths[:, None])

    def unrelated_text(self, request: EditRequest, seed: int) -> str:
        """Return text that the edit must not reach; see ``unrelated``.

        Args:
            request: The request.
            seed: Seed of the edit.
        """
        texts = NEUTRAL_TEXTS if self.unrelated is None else self.unrelated
        return choose_neutral(request.id, seed, texts)

    def _templates(self) -> list[str]:
        if self.templates is not None:
            return self.templates
        if self._sampled is None:
            openings = [opening for _ in LENGTHS for opening in OPENINGS]
            lengths = [length for length in LENGTHS for _ in OPENINGS]
            with torch.no_grad():
                self._sampled = sample_templates(
                    self.language_model, self.tokenizer, openings, lengths, self.seed
                )
        return self._sampled

    def _calibrated(self) -> tuple[float, float, float]:
        """Return the margins of Llama 2, in units of the projection's output on neutral text."""
        beta = self.beta_share * self._neutral_norms()[1]
        return 0.25 * beta, beta, 0.5 * beta

    def _largest_change(self) -> float | None:
        if self.norm_constraint != "auto":
            return self.norm_constraint
        norms = self._neutral_norms()
        most = norms.outputs / norms.inputs
        self.chose({"norm_constraint": most})
        return most

    def _margin_weight(self) -> float:
        """Return the weight of the margin loss; margins or a rate as numbers have the authors'."""
        if self.margins is not None or self.lr != "auto":
            return 1.0
        return MARGIN_UNIT / self._neutral_norms().outputs

    def _rate(self) -> float:
        r"""Return the learning rate.

        The gradient of one token's activation :math:`\|\Delta h\|` by :math:`\Delta` is
        :math:`u h^\top` with a unit vector u, so a step of η over the share ρ of the cells adds
        :math:`\eta \rho \|h\|^2` to it.
        """
        if self.lr != "auto":
            return self.lr
        inputs, outputs = self._neutral_norms()
        rate = STEP_REACH * outputs / (self.density * inputs**2 * self._margin_weight())
        self.chose({"lr": rate})
        return rate

    def _neutral_norms(self) -> Norms:
        if self._norms is None:
            prompts = self.prompts.prompts(NEUTRAL_TEXTS[::10])
            self._norms = neutral_norms(
                self.language_model, self.module, prompts, self.input_device
            )
        return self._norms

    def _train(
        self,
        texts: TrainingRows,
        before: Tensor,
        cells: Tensor,
        margins: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor, list[float]]:
        """Train the side matrix; returns its update, the texts' activations and the losses."""
        original = weight(self.language_model, f"{self.module}.weight").read(before.dtype)
        update = before.clone().requires_grad_()
        seen: list[Tensor] = []

        def change(hidden: Tensor, output: Tensor) -> Tensor:
            own = output.to(update.dtype)
            added = hidden.to(update.dtype) @ update.mT
            each = activations(added, own, self.activation, self.nonlinearity)
            seen[:] = [texts.levels(each)]
            return (own + added).to(output.dtype)

        losses: list[float] = []
        rate, margin_weight = self._rate(), self._margin_weight()
        most = self._largest_change()
        upper = UpperBlocks(self.view, texts.rows, self.block)
        with attached(self.language_model, {self.module: TrialAdapter(texts.rows, change)}):
            for step in range(self.steps):
                self.progress(step, self.steps)
                if settled(losses):
                    break
                loss = texts.answer_loss(upper.nll())
                edited, unrelated = seen[0][: texts.edited], seen[0][texts.edited :]
                loss = loss + margin_weight * margin_loss(edited, unrelated, margins)
                losses.append(float(loss.detach()))
                (gradient,) = torch.autograd.grad(loss, update)
                with torch.no_grad():
                    self._step(update, gradient, original, cells, (rate, most))
            self.progress(self.steps, self.steps)
            with torch.no_grad():
                upper.logits()  # the activations of what was learnt
        return update.detach(), seen[0].detach(), losses

    def _step(
        self,
        update: Tensor,
        gradient: Tensor,
        original: Tensor,
        cells: Tensor,
        limits: tuple[float, float | None],
    ) -> None:
        """Make a step of SGD on the cells that the shard may change, within the constraint."""
        rate, most = limits
        flat, base = update.flatten(), original.flatten()
        side = flat[cells] + base[cells]
        decay = self.weight_decay * (1.0 if self.lr == "auto" else rate)
        side = side - rate * gradient.flatten()[cells] - decay * side
        new = side - base[cells]
        if most is not None:
            new = new.clamp(-most, most)
        update.copy_(flat.index_copy(0, cells, new).view(update.shape))

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default block, deep as in the authors' Llama 2 (27 of 32)."""
        return [round(27 / 31 * (num_blocks - 1))]

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: side matrix, gradient, step, and the shard in float64."""
        return (3 * 4 + 8) * len(layers) * view.intermediate_size * view.hidden_size


def settled(losses: Sequence[float]) -> bool:
    """Return whether an edit stops, by the rule of the authors of WISE: low and no longer falling.

    Args:
        losses: Losses of the steps that were made.
    """
    if len(losses) < 2 or losses[-1] > _LOW:
        return False
    return abs(losses[-1] - losses[-2]) <= _STILL
