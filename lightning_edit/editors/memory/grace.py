"""GRACE: Hartvigsen et al., Aging with GRACE: Lifelong Model Editing, NeurIPS 2023.

Discrete key-value adaptors, arXiv 2211.11031.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.memory.base import (
    Identity,
    MemoryEditor,
    Projection,
    TrialAdapter,
    at_least_single,
    neutral_keys,
)
from lightning_edit.editors.memory.codebook import (
    Codebook,
    CodebookAdapter,
    Expansion,
    Label,
    Replacement,
)
from lightning_edit.editors.memory.neutral_texts import NEUTRAL_TEXTS
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError, SolveError
from lightning_edit.functional.adam import AdamVector
from lightning_edit.functional.auto import subject_distance
from lightning_edit.inference.answer_pass import wide
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.module_adapter import ModuleAdapter, attached
from lightning_edit.inference.suffix.build import build_suffix_forward
from lightning_edit.inference.suffix.upper_blocks import UpperBlocks
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.prompt_encoder import Ids
from lightning_edit.models.view import ModelView, Stack
from lightning_edit.types import EditBatch, Encoded

#: ``radius="auto"``: share of the distance between prompts about two subjects.
RADIUS_SHARE = 0.5


class GRACE(MemoryEditor[Codebook]):
    """GRACE: a codebook of keys and values at one MLP projection; weights stay as they are.

    The key of an edit is the projection's input at the prompt's last token, its value what the
    projection returns there instead, learnt by gradient descent on the answer. A prompt whose own
    last token lies in the ball of a key reads that value. Near edits fit their radii: a ball of the
    same answer widens, two of different answers shrink until they touch.

    Args:
        layer: Block with the codebook; ``None``: by depth, see ``default_layers`` and, with two
            stacks, ``default_sites``.
        projection: MLP projection in it: ``down`` (the authors' T5 and BERT, EasyEdit's Llama) or
            ``up`` (the authors' GPT-2 XL); the first of two where there is a gate.
        steps: Optimiser steps on a value (100; EasyEdit 50 to 200); long answers need more.
        lr: Adam's learning rate (1.0). ``auto``: beside a radius by rule the root mean square of
            the entries of the projection's own output on neutral text, which is 1.0 in the embedded
            model, and a cold value begins in the same units; beside a number the authors' 1.0.
        radius: Radius of a new key, epsilon (1.0), in units of the activation. ``auto``:
            :data:`RADIUS_SHARE` of the distance between the keys of prompts that say the same of
            two subjects, on neutral text.
        replacement: Tokens that get the value: ``replace_last``, the prompt's last token
            (EasyEdit); ``replace_prompt``, those before it (the authors'); ``replace_all``.
        expansion: What an edit does to a near key of the same answer: ``coverage`` or
            ``moving_average`` (eps_expand).
        initial_value: Where a value begins: ``cold``, uniform in [0, 1); ``warm``, the projection's
            own output.
        threshold: Loss (nats per token) below which training stops; 0: never, as the authors.
        same_label: When two answers are the same: ``tokens``, equal ids; ``mean_id``, equal mean of
            the ids, as in the authors' code, where answers can collide.
        stack: With two stacks, the one of the block: ``encoder`` (``None``: this; the authors'
            T5), where the prompt's last token is its EOS; or ``decoder``, where the start token
            stands for it, since it reads the prompt through attention to the encoder. An answer's
            EOS is learnt too there, as the authors' labels have it.

    Note:
        An undo in the middle is an undo of the key: radii are fitted again without it. A value that
        an edit learnt from that of an earlier one with the same answer keeps this beginning. An
        edit of the very prompt of an earlier one takes its place; in the authors' code its radius
        would be zero, and rounding would decide which of the two answers. A token that is replaced
        is the prompt's own, so a decision is kept for the whole answer.

        One value has to carry the whole answer: the more tokens this has, and the smaller the
        model, the more steps. With the published 100 SmolLM2 (135 M) gave answers of one to six
        tokens; the embedded model gave those of one token, but one of four only from 200 steps on.
    """

    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")
    stacks = ("encoder",)

    def __init__(
        self,
        layer: int | None = None,
        projection: Projection = "down",
        steps: int = 100,
        lr: float | Literal["auto"] = "auto",
        radius: float | Literal["auto"] = "auto",
        replacement: Replacement = "replace_last",
        expansion: Expansion = "coverage",
        initial_value: Literal["cold", "warm"] = "cold",
        threshold: float = 0.0,
        same_label: Literal["tokens", "mean_id"] = "tokens",
        stack: Stack | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or (lr != "auto" and lr <= 0) or (radius != "auto" and radius <= 0):
            raise ValueError(
                f"GRACE needs steps >= 1, lr and radius auto or > 0, got {steps}, {lr}, {radius}"
            )
        self.layer = layer
        self.projection: Projection = projection
        self.steps = steps
        self.lr: float | Literal["auto"] = 1.0 if lr == "auto" and radius != "auto" else lr
        self.radius: float | Literal["auto"] = radius
        self.replacement: Replacement = replacement
        self.expansion: Expansion = expansion
        self.initial_value = initial_value
        self.threshold = threshold
        self.same_label = same_label
        self.stack: Stack | None = stack

    @property
    def edited_stack(self) -> Stack:
        """Stack with the codebook, in the bound model."""
        return next(iter(self.default_sites(self.view))) if self.stack is None else self.stack

    @property
    def block(self) -> int:
        """Number of the block with the codebook, in the bound model."""
        if self.layer is not None:
            return self.layer
        return self._default_block(self.edited_stack, len(self.view.stack(self.edited_stack)))

    @property
    def module(self) -> str:
        """Dotted name of the projection with the codebook."""
        return self.site(self.block, self.projection, self.edited_stack)

    def on_bind(self) -> None:
        """Prepare the runtime.

        Raises:
            ArchitectureError: If the codebook's place has read the last token of a prompt alone.
        """
        self._chosen_radius: float | None = None
        self._chosen_lr: float | None = None
        super().on_bind()
        self.require_context(self.block, self.module)

    def empty_memory(self) -> Codebook:
        """Return a codebook without entries; checks that its place exists.

        Raises:
            ArchitectureError: If the model has no such stack or block.
            ConfigError: If there is no token that a value could replace.
        """
        assert self.module  # an unknown block raises
        if self.replacement == "replace_prompt" and self._at_start:
            raise ConfigError(
                "replace_prompt replaces the tokens before the prompt's last one, but a decoder of "
                "two stacks reads nothing before its start token; take replace_last, or "
                "stack='encoder'"
            )
        same = None if self.same_label == "tokens" else _equal_mean
        # Edits hold their radii; those of versions that wrote none had the authors'.
        return Codebook(1.0 if self.radius == "auto" else self.radius, self.expansion, same)

    def adapters(self, memory: Codebook) -> Mapping[str, ModuleAdapter]:
        """Return the codebook's adapter."""
        return {self.module: CodebookAdapter(memory, self.replacement)}

    def learn(self, part: EditBatch, memory: Codebook) -> Delta:
        """Read the key of a request and train its value."""
        item = part.encoded[0]
        with self.stage("keys"):
            key, output = self._read(item)
            radius = self._new_radius()
        found = memory.match(key, item.target_ids, radius)
        if found.kind == "same":
            start = memory.balls[found.entry].value.clone()
        else:
            start = output if self.initial_value == "warm" else self.cold_value(output, part.seed)
        value, losses = self._train(item, start)
        state = {
            "key": key[None],
            "value": value[None],
            "label": torch.tensor([item.target_ids]),
            "radius": torch.tensor([radius]),
        }
        info = {"loss": losses[-1], "steps": len(losses), "match": found.kind}
        info |= self.chosen_info()
        return Delta(part.ids, state=state, info=info)

    def cold_value(self, like: Float[Tensor, " d_out"], seed: int) -> Float[Tensor, " d_out"]:
        """Return a random value to begin from.

        Args:
            like: The projection's own output.
            seed: Seed of the edit.
        """
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(len(like), generator=generator).to(like.device)
        return start * self._rate() if self.lr == "auto" else start

    def _rate(self) -> float:
        """Return Adam's learning rate; that of ``auto`` is read once from the bound model.

        Raises:
            SolveError: If the projection returns nothing on neutral text, or no numbers.
        """
        if self.lr != "auto":
            return self.lr
        if self._chosen_lr is None:
            outputs = self._read_last(self.prompts.prompts(NEUTRAL_TEXTS[::10]), "output")
            norm = float(outputs.norm(dim=-1).median())
            if not 0 < norm < inf:
                raise SolveError(
                    f"lr=auto: on neutral text {self.module} returns vectors of the norm {norm:g}, "
                    "expected a finite one above 0; load the model in float32 or bfloat16, take "
                    "another layer, or give lr as a number"
                )
            self._chosen_lr = norm / outputs.shape[-1] ** 0.5
        self.chose({"lr": self._chosen_lr})
        return self._chosen_lr

    @torch.no_grad()
    def _read(self, item: Encoded) -> tuple[Tensor, Tensor]:
        """Return the projection's input and output at the prompt's last token, float32."""
        model = self.language_model
        rows = AnswerRows.of(model, [(item.prompt_ids, item.target_ids[:1])], self.input_device)
        with capture(model, {self.module: "both"}, stop=True) as captured:
            model(**rows.inputs, use_cache=False)
        place = 0 if self._at_start else -1
        both = (captured[f"{self.module}@{side}"][0, place] for side in ("input", "output"))
        key, output = (at_least_single(one).clone() for one in both)
        return key, output

    def _new_radius(self) -> float:
        """Return the radius of a new key; that of ``auto`` is read once from the bound model."""
        if self.radius != "auto":
            return self.radius
        if self._chosen_radius is None:
            keys = neutral_keys(self.prompts, partial(self._read_last, side="input"))
            self._chosen_radius = RADIUS_SHARE * subject_distance(keys)
        self.chose({"radius": self._chosen_radius})
        return self._chosen_radius

    @torch.no_grad()
    def _read_last(
        self, prompts: Sequence[Ids], side: Literal["input", "output"]
    ) -> Float[Tensor, "n d"]:
        """Return the projection's input or output at the last token of prompts."""
        model = self.language_model
        rows = AnswerRows.of(model, [(ids, ids[:1]) for ids in prompts], self.input_device)
        with capture(model, {self.module: side}, stop=True) as captured:
            model(**rows.inputs, use_cache=False)
        ends = [0] * len(prompts) if self._at_start else rows.prompt_ends
        return at_least_single(captured[self.module][list(range(len(ends))), ends])

    def _train(self, item: Encoded, start: Tensor) -> tuple[Tensor, list[float]]:
        """Train a value by Adam on the answer's mean negative log-likelihood."""
        value = start.clone().requires_grad_()
        optimizer = AdamVector(value, self._rate())
        losses: list[float] = []
        with ExitStack() as stack:
            loss_of = self._loss(item, value, stack)
            for step in range(self.steps):
                self.progress(step, self.steps)
                loss = loss_of()
                losses.append(float(loss.detach()))
                if losses[-1] < self.threshold:
                    break
                optimizer.step(torch.autograd.grad(loss, value)[0])
        self.progress(self.steps, self.steps)
        return value.detach(), losses

    def _loss(self, item: Encoded, value: Tensor, stack: ExitStack) -> Callable[[], Tensor]:
        """Return the loss as a function of the value; only what the value changes runs again."""
        two = self.view.is_encoder_decoder
        if self.replacement == "replace_last" and self.projection == "down" and not two:
            return self._suffix_loss(item, value)
        model = self.language_model
        pairs = [(item.prompt_ids, self.prompts.labels(model, item.target_ids))]
        rows = AnswerRows.of(model, pairs, self.input_device)
        if self._at_start:
            rows = rows.encode_prompts(model)
        adapter = TrialAdapter(rows, self._change(item, value, rows), self.edited_stack)
        if two:
            stack.enter_context(attached(model, {self.module: adapter}))
            return lambda: torch.nn.functional.cross_entropy(
                wide(answer_logits(model, rows)), rows.targets
            )
        upper = UpperBlocks(self.view, rows, self.block)
        stack.enter_context(attached(model, {self.module: adapter}))
        return lambda: upper.nll().mean()

    @property
    def _at_start(self) -> bool:
        """Whether the start token of a decoder stands for the prompt's last token."""
        return self.view.is_encoder_decoder and self.edited_stack == "decoder"

    def _change(
        self, item: Encoded, value: Tensor, rows: AnswerRows
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what puts a value in the place of the replaced tokens of a prompt's row."""
        read = rows.ids if rows.encoder is None or self._at_start else rows.encoder[0]
        steps = torch.arange(read.shape[1], device=read.device)
        last = 0 if self._at_start else len(item.prompt_ids) - 1
        where = {
            "replace_last": steps == last,
            "replace_prompt": steps < last,
            "replace_all": steps >= 0,
        }[self.replacement]
        if not bool(where.any()):
            raise ConfigError(
                "replace_prompt replaces the tokens before the prompt's last one, but a prompt has "
                "only one token; write more of the prompt, or take replace_last"
            )

        def change(hidden: Tensor, output: Tensor) -> Tensor:
            return torch.where(where[:, None], value.to(output.dtype), output)

        return change

    def _suffix_loss(self, item: Encoded, value: Tensor) -> Callable[[], Tensor]:
        """Return the loss where the value acts at one token: earlier tokens are computed once."""
        last = len(item.prompt_ids) - 1
        ids = (*item.prompt_ids, *item.target_ids[:-1])
        with attached(self.language_model, {self.module: Identity()}):
            suffix = build_suffix_forward(
                self.view, [TokenizedText(0, ids, last, item.target_ids)], self.block, "mlp"
            )
        targets = torch.tensor(item.target_ids, device=value.device)
        positions = torch.arange(len(targets), device=value.device)
        rows = torch.zeros_like(positions)
        own = at_least_single(suffix.values)

        def loss() -> Tensor:
            logits = suffix.logits((value - own[0])[None], rows, positions)
            return torch.nn.functional.cross_entropy(logits, targets)

        return loss

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default block, deep as in EasyEdit's Llama 2 (27 of 32).

        Never the last: a value at the prompt's last token would reach only the answer's first.
        """
        return [cls._default_block("decoder", num_blocks)]

    @classmethod
    def default_sites(cls, view: ModelView) -> dict[Stack, list[int]]:
        """Return the encoder where there is one, deep as in the authors' T5 (4 of 8).

        Args:
            view: The model's structure.
        """
        stack: Stack = "encoder" if view.is_encoder_decoder else "decoder"
        return {stack: [cls._default_block(stack, len(view.stack(stack)))]}

    @staticmethod
    def _default_block(stack: Stack, count: int) -> int:
        if stack == "encoder":
            return round(4 / 7 * (count - 1))
        return max(0, min(round(27 / 31 * (count - 1)), count - 2))

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: a value, its gradient and Adam's moments, in float32."""
        return 4 * 4 * len(layers) * view.hidden_size


def _equal_mean(one: Label, other: Label) -> bool:
    """Return whether two answers have the same mean token id, as in the authors' code."""
    return _mean(one) == _mean(other)


def _mean(ids: Sequence[int]) -> float:
    return sum(ids) / len(ids)
