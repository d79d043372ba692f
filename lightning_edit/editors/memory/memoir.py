"""MEMOIR: Wang, Qin et al., Model Editing with Minimal Overwrite and Informed Retention for LLMs.

NeurIPS 2025, arXiv 2506.07899.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_edit.editors.locate.context_templates import sample_templates, with_bare_prompt
from lightning_edit.editors.memory.base import MemoryEditor, Projection, TrialAdapter
from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS
from lightning_edit.editors.memory.output_scale import neutral_norms
from lightning_edit.editors.memory.residual_memory import ResidualMemory, ResidualMemoryAdapter
from lightning_edit.editors.memory.wise import LENGTHS, OPENINGS, settled
from lightning_edit.edits.delta import Delta
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.top_hash import top_hash
from lightning_edit.inference.answer_rows import AnswerRow, AnswerRows
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.module_adapter import ModuleAdapter, attached
from lightning_edit.inference.suffix.upper_blocks import UpperBlocks
from lightning_edit.models.view import ModelView
from lightning_edit.models.weights import weight
from lightning_edit.types import EditBatch, EditRequest

#: Share of the inputs that a mask selects in the authors' configs: 4096 of Llama 3's 14336.
_SHARE = 4096 / 14336


class MEMOIR(MemoryEditor[ResidualMemory]):
    """MEMOIR: each edit writes to a few input columns of a residual memory, chosen by its prompt.

    Beside one down-projection stands a matrix of zeros, W₀a + W_m(M(x) ⊙ a). The mask M(x) selects
    the k inputs in which the mean over the prompt's tokens is largest (TopHash). An edit trains W_m
    through the masks of its prompt in several contexts, so that it touches only their columns. A
    prompt whose own mask overlaps a stored one by τ or more reads the memory through the stored
    mask, for its whole answer; any other reads nothing.

    Args:
        layer: Block with the memory; ``None``: by depth, see ``default_layers``.
        projection: MLP projection in it.
        steps: Most optimiser steps on an edit (30).
        lr: Learning rate of SGD (1.0). ``auto``: 1.0 for a matrix in units of the norm of the
            projection's output over that of its input, both on neutral text.
        mask_size: Inputs that a mask selects, k (4096); ``None``: two sevenths of all, as of
            Llama 3's 14336.
        threshold: Smallest overlap at which a prompt reads the memory, τ (0.4 for facts; 0.9 for
            long texts).
        weight_decay: SGD's weight decay (1e-5), of the columns that the edit writes to.
        clip: Largest norm of a gradient (1.0); with ``lr="auto"`` in its units.
        background: Unrelated texts, whose mean input is subtracted before the hash; ``None``: the
            hundred of :data:`~lightning_edit.editors.memory.neutral_texts.NEUTRAL_TEXTS`; an empty
            list: nothing is subtracted.
        templates: Context templates, each with one ``{}``; ``None``: ten, sampled from the model.
        seed: Seed of the permutation and of the templates.

    Note:
        What an edit wrote is its own summand of the memory, so an undo takes out exactly that.
        Later edits whose masks share columns with it were trained beside it and stay as they are.
        An edit of the very prompt of an earlier one takes its place and is learnt without it; in
        the authors' code the two are summed, and the newer would be lost with the older. The mean
        of the background is read from the model once and kept in every edit, so that a prompt
        selects the same columns where the edits are loaded, however sums are rounded there.
    """

    def __init__(
        self,
        layer: int | None = None,
        projection: Projection = "down",
        steps: int = 30,
        lr: float | Literal["auto"] = "auto",
        mask_size: int | None = None,
        threshold: float = 0.4,
        weight_decay: float = 1e-5,
        clip: float = 1.0,
        background: list[str] | None = None,
        templates: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if steps < 1 or (lr != "auto" and lr <= 0) or clip <= 0 or not 0 < threshold <= 1:
            raise ValueError(
                "MEMOIR needs steps >= 1, lr auto or > 0, clip > 0 and a threshold in (0, 1], got "
                f"{steps}, {lr}, {clip}, {threshold}"
            )
        self.layer = layer
        self.projection: Projection = projection
        self.steps = steps
        self.lr: float | Literal["auto"] = lr
        self.mask_size = mask_size
        self.threshold = threshold
        self.weight_decay = weight_decay
        self.clip = clip
        self.background = background
        self.templates = None if templates is None else with_bare_prompt(templates)
        self.seed = seed

    @property
    def block(self) -> int:
        """Number of the block with the memory, in the bound model."""
        return self.default_layers(self.view.num_blocks)[0] if self.layer is None else self.layer

    @property
    def module(self) -> str:
        """Dotted name of the projection with the memory."""
        return self.site(self.block, self.projection)

    def on_bind(self) -> None:
        """Prepare the runtime; templates and the background are read when they are needed.

        Raises:
            ValueError: If a mask is larger than the layer.
        """
        self._sampled: list[str] | None = None
        self._mean: Tensor | None = None
        self._unit: float | None = None
        super().on_bind()
        d_in = self._memory.shape[1]
        self._count = round(_SHARE * d_in) if self.mask_size is None else self.mask_size
        if not 0 < self._count <= d_in:
            raise ValueError(
                f"a mask of {self._count} inputs was asked for, but {self.module} has {d_in}; give "
                "a smaller mask_size, or none"
            )
        generator = torch.Generator().manual_seed(self.seed)
        self._permutation = torch.randperm(d_in, generator=generator)

    def empty_memory(self) -> ResidualMemory:
        """Return a memory of zeros."""
        d_out, d_in = weight(self.language_model, f"{self.module}.weight").shape
        return ResidualMemory((d_out, d_in))

    def adapters(self, memory: ResidualMemory) -> Mapping[str, ModuleAdapter]:
        """Return the memory's adapter."""
        assert memory.background is not None  # there is an edit
        hash_of = partial(self.hash_of, background=memory.background)
        return {self.module: ResidualMemoryAdapter(memory, hash_of, self.threshold)}

    def hash_of(
        self, features: Float[Tensor, "r d_in"], background: Float[Tensor, " d_in"]
    ) -> Int[Tensor, "r k"]:
        """Return the masks of prompts.

        Args:
            features: Mean over each prompt's tokens of the projection's input.
            background: Mean of the features of unrelated texts, see ``background``.
        """
        centred = features - background.to(features.device)
        return top_hash(centred, self._permutation.to(features.device), self._count)

    @torch.no_grad()
    def _background(self) -> Float[Tensor, " d_in"]:
        """Return the mean feature of unrelated texts, in the form in which prompts are asked."""
        if self._mean is None:
            texts = NEUTRAL_TEXTS if self.background is None else self.background
            prompts = self.prompts.prompts(texts)
            features = [self._features(prompts[n : n + 16]) for n in range(0, len(prompts), 16)]
            self._mean = (
                torch.cat(features).mean(0)
                if features
                else torch.zeros(self._memory.shape[1], device=self.input_device)
            )
        return self._mean

    @torch.no_grad()
    def _features(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "r d_in"]:
        """Return the mean over each prompt's tokens of the projection's input."""
        rows = AnswerRows.pad([(ids, ()) for ids in prompts], self.input_device)
        model = self.language_model
        with capture(model, {self.module: "input"}, stop=True) as captured:
            model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False)
        # OPT flattens rows and positions to one axis before its MLP.
        hidden = captured[self.module].float().view(*rows.ids.shape, -1)
        real = rows.mask[..., None]
        means: Tensor = (hidden * real).sum(1) / real.sum(1)
        return means

    # ------------------------------------------------------------------------------------ training

    def learn(self, part: EditBatch, memory: ResidualMemory) -> Delta:
        """Write a request into the columns that its prompt selects in every context."""
        rows = self._rows(part.requests[0], part.seed)
        with self.stage("keys"):
            # That of the edits in force, if any: a stored mask and a prompt's own are compared.
            background = self._background() if memory.background is None else memory.background
            features = self._features([prompt for prompt, _ in rows])
            masks = self.hash_of(features, background)
        columns, places = torch.unique(masks, return_inverse=True)
        selected = torch.zeros(len(rows), len(columns), device=masks.device)
        selected.scatter_(1, places, 1.0)
        prompt = rows[0][0]  # the bare one
        # An earlier edit of the very prompt is replaced, so nothing is learnt beside it.
        matrix = memory.without(prompt).matrix
        before = matrix[:, columns.cpu()].float().to(masks.device)
        after, losses = self._train(rows, before, columns, selected)
        state = {
            "prompt": torch.tensor([prompt]),
            "columns": columns[None].int(),
            "values": (after - before)[None],
            "masks": torch.unique(masks, dim=0)[None].int(),
            "background": background[None].float(),
        }
        info = {"loss": losses[-1], "steps": len(losses)} | self.chosen_info()
        return Delta(part.ids, state=state, info=info)

    def _rows(self, request: EditRequest, seed: int) -> list[AnswerRow]:
        """Return prompt and answer in every context."""
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
        return [(one.prompt_ids, one.target_ids) for one in encoded]

    def _templates(self) -> list[str]:
        if self.templates is not None:
            return self.templates
        if self._sampled is None:
            openings = [opening for _ in LENGTHS for opening in OPENINGS]
            lengths = [length for length in LENGTHS for _ in OPENINGS]
            self._sampled = sample_templates(
                self.language_model, self.tokenizer, openings, lengths, self.seed
            )
        return self._sampled

    def _step(self) -> tuple[float, float, float]:
        """Return the learning rate, the largest norm of a gradient, and the share of weight decay.

        Of a matrix s·M, the gradient by M is s times that by s·M, and a step of M s times as large.
        """
        if self.lr != "auto":
            return self.lr, self.clip, self.lr * self.weight_decay
        if self._unit is None:
            prompts = self.prompts.prompts(NEUTRAL_TEXTS[::10])
            norms = neutral_norms(self.language_model, self.module, prompts, self.input_device)
            self._unit = norms.outputs / norms.inputs
        self.chose({"lr": self._unit**2})
        return self._unit**2, self.clip / self._unit, self.weight_decay

    def _train(
        self, texts: Sequence[AnswerRow], before: Tensor, columns: Tensor, selected: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Train the selected columns of the memory by SGD with clipped gradients."""
        rows = AnswerRows.pad(texts, self.input_device)
        part = before.clone().requires_grad_()

        def change(hidden: Tensor, output: Tensor) -> Tensor:
            read = hidden[..., columns].to(part.dtype) * selected[:, None]
            return (output + read @ part.mT).to(output.dtype)

        losses: list[float] = []
        rate, clip, shrinkage = self._step()
        upper = UpperBlocks(self.view, rows, self.block)
        with attached(self.language_model, {self.module: TrialAdapter(rows, change)}):
            for step in range(self.steps):
                self.progress(step, self.steps)
                if settled(losses):
                    break
                loss = rows.per_row(upper.nll()).mean()
                losses.append(float(loss.detach()))
                (gradient,) = torch.autograd.grad(loss, part)
                with torch.no_grad():
                    norm = gradient.norm()
                    gradient = gradient * (clip / norm.clamp_min(clip))
                    part.sub_(rate * gradient + shrinkage * part)
        self.progress(self.steps, self.steps)
        return part.detach(), losses

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default block, deep as in the authors' Llama 3 (27 of 32)."""
        return [round(27 / 31 * (num_blocks - 1))]

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: the matrix in float64 and float32, its part, gradient and step."""
        return (8 + 4 * 4) * len(layers) * view.intermediate_size * view.hidden_size
