"""CaliNET: Dong et al., Calibrating Factual Knowledge in Pretrained Language Models, EMNLP 2022.

arXiv 2210.03329. Axis names: ``d`` -- hidden width; ``n`` -- neurons of a block; ``a`` -- answer
tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_edit.editors.auto_rate import rate_for
from lightning_edit.editors.base import Editor
from lightning_edit.editors.locate.context_templates import with_bare_prompt
from lightning_edit.editors.neurons.answer_pass import AnswerPass, LastBlockPass, answer_pass
from lightning_edit.editors.neurons.beside_ffn import Branch, BranchRuntime, total
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError, DataError
from lightning_edit.functional.extra_neurons import calibration_output
from lightning_edit.inference.answer_rows import AnswerRow
from lightning_edit.models.prompt_encoder import PromptText
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

Kind = Literal["relu", "gated"]
#: ``lr="auto"``: share of the loss that the first step takes from it, to first order.
STEP_REACH = 0.005


class CalibrationBlock(NamedTuple):
    """Weights of a calibration block.

    Args:
        read: W_in.
        write: W_out.
        gate: W_gate; ``None``: the block has no gate.
    """

    read: Float[Tensor, "n d"]
    write: Float[Tensor, "d n"]
    gate: Float[Tensor, "n d"] | None = None

    @classmethod
    def fresh(
        cls, width: int, size: int, kind: Kind, start: str, generator: torch.Generator
    ) -> "CalibrationBlock":
        """Return a block before training.

        Args:
            width: d.
            size: n.
            kind: Whether it has a gate.
            start: ``random``: all weights uniform as in a linear layer of torch. ``zero``: what it
                adds is zero.
            generator: Draws the weights.
        """
        listed = [
            _uniform(size, width, generator),
            _uniform(width, size, generator),
            *([_uniform(size, width, generator)] if kind == "gated" else []),
        ]
        if start == "zero":
            listed[1].zero_()
        return cls(*listed)

    def weights(self) -> list[Tensor]:
        """Return the weights, without what is not there."""
        return [one for one in self if one is not None]

    def state(self, module: str) -> dict[str, Tensor]:
        """Return the weights as named tensors.

        Args:
            module: Name of the module that the block adds to.
        """
        named = self._asdict().items()
        return {f"{module}.{name}": one.detach() for name, one in named if one is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], module: str) -> "CalibrationBlock":
        """Read what :meth:`state` gave.

        Args:
            state: Named tensors.
            module: Name of the module that the block adds to.
        """
        return cls(state[f"{module}.read"], state[f"{module}.write"], state.get(f"{module}.gate"))

    def branch(self) -> Branch:
        """Return what the block adds, as a function of hidden states."""

        def added(hidden: Tensor) -> Tensor:
            read, write, gate = (None if one is None else one.to(hidden) for one in self)
            assert read is not None  # only a gate may be absent
            assert write is not None
            return calibration_output(hidden, read, write, gate)

        return added


class CaliNet(Editor):
    r"""CaliNET: a small feed-forward network beside an existing one, trained on a batch of facts.

    :math:`\mathrm{FFN}'(h) = \mathrm{FFN}(h) + W_o\,\mathrm{ReLU}(W_i h)`, trained by cross-entropy
    on the answer tokens of all facts of a batch together. The model's own weights are frozen. With
    two stacks blocks stand in the decoder only, as in the paper's T5, always active: an answer's
    tokens, forced or generated, pass them, and the encoder reads prompts as it always did. An
    answer's EOS is learnt there too, as the paper's labels have it.

    Args:
        layers: Blocks that get a calibration block; ``None``: the last (of T5's decoder in the
            paper). Other choices run the whole model at every step.
        width: Neurons of a block (64 for 100 facts and 256 in the paper).
        kind: ``relu``, or ``gated``: GELU-gated as in T5 v1.1, with a second input matrix.
        start: ``random``, the authors': torch's linear initialisation, which disturbs the answers
            to every prompt from the first step on, and nothing in the loss repairs that. ``zero``:
            W_o is zero at the start, so that the model begins as it was.
        use_rephrases: Also train on the request's own rephrases, as the paper does with paraphrases
            of a fact (it tests on others). They then can no longer measure generalization.
        context_templates: Texts with one ``{}`` for the prompt, for more inputs of every fact.
        steps: Most optimiser steps (5000 in the authors' script).
        lr: Adafactor's learning rate, constant (1e-2 in the authors' script). ``auto``: for each
            batch the rate at which a step of this size in every weight takes, to first order,
            :data:`STEP_REACH` of the loss.
        threshold: Loss in nats below which training stops, mean over the tokens of the facts; 0:
            never, as the authors. What is trained longer changes more answers to other prompts.
        batch_size: Rows per optimiser step (512 in the authors' script).
        clip: Largest norm of the block's gradients together. The authors' trainer has 1 for those
            of the frozen model too; Adafactor's scaling largely cancels it.

    Note:
        Made for many facts at once. There is no term for locality: the published weakness that a
        block, always active, changes answers to other prompts is here too. With the defaults 20 of
        20 facts of the embedded model are written, 19 of 20 of a GPT-2 of 6 blocks and 20 of 20 of
        SmolLM2 (135 M), and 0.79, 0.35 and 0.08 of their neighbours answer as before; of the rates
        that were tried none keeps more. A later batch adds a further block beside the earlier ones,
        which stay as they were trained; an undo removes one. To see first which facts a model does
        not know: ``lightning-edit detect``.
    """

    edits_weights: ClassVar[bool] = False
    both_forms: ClassVar[bool] = True
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    def __init__(
        self,
        layers: list[int] | None = None,
        width: int = 64,
        kind: Kind = "relu",
        start: Literal["random", "zero"] = "random",
        use_rephrases: bool = False,
        context_templates: list[str] | None = None,
        steps: int = 500,
        lr: float | Literal["auto"] = "auto",
        threshold: float = 0.1,
        batch_size: int = 512,
        clip: float = 1.0,
    ) -> None:
        super().__init__()
        rate = 1.0 if lr == "auto" else lr
        if min(width, steps, batch_size) < 1 or rate <= 0 or clip <= 0:
            raise ConfigError(
                "CaliNet: expected width, steps and batch_size of at least 1, lr auto or > 0 and "
                f"clip > 0, got {width=}, {steps=}, {batch_size=}, {lr=}, {clip=}"
            )
        if kind not in ("relu", "gated") or start not in ("random", "zero"):
            raise ConfigError(
                "CaliNet: expected kind relu or gated and start random or zero, got "
                f"{kind=}, {start=}"
            )
        self.layers = layers
        self.width = width
        self.kind: Kind = kind
        self.start: Literal["random", "zero"] = start
        self.use_rephrases = use_rephrases
        self.context_templates = context_templates
        self.templates = with_bare_prompt(context_templates or [])
        self.steps = steps
        self.lr: float | Literal["auto"] = lr
        self.threshold = threshold
        self.batch_size = batch_size
        self.clip = clip

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer, the last block (T5-base in the authors' script)."""
        return [num_blocks - 1]

    @property
    def edited_layers(self) -> list[int]:
        """The blocks of the bound model that get a calibration block."""
        if self.layers is None:
            return self.default_layers(self.view.num_blocks)
        return sorted(set(self.layers))

    def on_bind(self) -> None:
        """Find the networks beside which blocks will stand."""
        self._beside = {one: self.view.block(one).mlp_down for one in self.edited_layers}
        self._runtime = BranchRuntime(self.view, self._branches)

    def runtime(self) -> BranchRuntime:
        """Return what puts the blocks of the edits in force beside the networks."""
        return self._runtime

    def _branches(self, in_force: Sequence[Delta]) -> Mapping[int, Branch]:
        return {
            layer: total(
                CalibrationBlock.from_state(one.state, module).branch() for one in in_force
            )
            for layer, module in self._beside.items()
        }

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Train the calibration blocks on all facts of the batch.

        Args:
            batch: The requests.

        Returns:
            The blocks' weights, as state.
        """
        generator = torch.Generator().manual_seed(batch.seed)
        with torch.inference_mode(False), torch.enable_grad(), self.stage("search"):
            rows = self._rows(batch)
            asked = answer_pass(self.view, rows, self.edited_layers, self._runtime.branches)
            blocks = {layer: self._fresh(generator) for layer in self.edited_layers}
            losses = self._train(asked, rows, blocks, generator)
        state: dict[str, Tensor] = {}
        for layer, block in blocks.items():
            state |= block.state(self._beside[layer])
        info = {"loss": losses, "steps": len(losses)} | self.chosen_info()
        return Delta(batch.ids, state=state, info=info)

    def _rows(self, batch: EditBatch) -> list[AnswerRow]:
        """Return every fact in every wording and form."""
        rows: list[AnswerRow] = [
            (form.prompt_ids, form.target_ids) for one in batch.encoded for form in one.forms
        ]
        texts = []
        for request in batch.requests:
            prompts = [request.prompt, *(request.rephrases if self.use_rephrases else ())]
            texts += [
                PromptText(
                    template.replace("{}", prompt, 1), request.target, None, request.separator
                )
                for template in self.templates
                for prompt in prompts
                if (template, prompt) != ("{}", request.prompt)
            ]
        try:
            for encoder in self.prompts.forms:
                found = encoder.encode(texts)
                rows += [(one.prompt, encoder.learnt(one.answer)) for one in found]
        except ValueError as error:
            raise DataError(f"a wording of {', '.join(batch.ids[:5])}: {error}") from error
        model = self.language_model
        return [(prompt, self.prompts.labels(model, tuple(answer))) for prompt, answer in rows]

    def _fresh(self, generator: torch.Generator) -> CalibrationBlock:
        weight = self.view.model.get_parameter(f"{self._beside[self.edited_layers[0]]}.weight")
        dtype = torch.promote_types(weight.dtype, torch.float32)
        size = self.view.hidden_size
        block = CalibrationBlock.fresh(size, self.width, self.kind, self.start, generator)
        placed = (one.to(weight.device, dtype).requires_grad_() for one in block.weights())
        return CalibrationBlock(*placed)

    def _train(
        self,
        asked: AnswerPass,
        rows: Sequence[AnswerRow],
        blocks: Mapping[int, CalibrationBlock],
        generator: torch.Generator,
    ) -> list[float]:
        weights = [one for block in blocks.values() for one in block.weights()]
        branches = {layer: block.branch() for layer, block in blocks.items()}
        passes = mini_batches(asked, rows, self.batch_size, generator, self._part)
        per_epoch = -(-len(rows) // self.batch_size)
        rate = self.lr
        if rate == "auto":
            first = nn.functional.cross_entropy(asked.logits(branches), asked.targets)
            rate = rate_for(self, first, weights, STEP_REACH)
        optimizer = adafactor(weights, rate)
        losses: list[float] = []
        for step in range(self.steps):
            self.progress(step, self.steps)
            part = next(passes)
            loss = nn.functional.cross_entropy(part.logits(branches), part.targets)
            losses.append(loss.item())
            recent = losses[-per_epoch:]
            if len(recent) == per_epoch and sum(recent) / per_epoch < self.threshold:
                break
            calibration_step(weights, optimizer, loss, self.clip)
        self.progress(self.steps, self.steps)
        return losses

    def _part(self, rows: Sequence[AnswerRow]) -> AnswerPass:
        return answer_pass(self.view, rows, self.edited_layers, self._runtime.branches)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: two matrices per block, with gradients and moments."""
        return 4 * 3 * len(layers) * 2 * 64 * view.hidden_size


def adafactor(weights: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return the authors' optimiser: Adafactor with an absolute, constant learning rate.

    It is that of transformers: torch's own multiplies the rate by the size of the weights.

    Args:
        weights: What is trained.
        lr: Learning rate.
    """
    from transformers.optimization import Adafactor  # a slow import that only this editor needs

    optimizer: torch.optim.Optimizer = Adafactor(  # type: ignore[no-untyped-call]  # theirs is untyped
        list(weights), lr=lr, scale_parameter=False, relative_step=False
    )
    return optimizer


def calibration_step(
    weights: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    loss: Float[Tensor, ""],
    clip: float,
) -> float:
    """Make one optimiser step with clipped gradients.

    Args:
        weights: What is trained.
        optimizer: Their optimiser.
        loss: The loss.
        clip: Largest norm of all gradients together.

    Returns:
        The norm before clipping.
    """
    for one, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        one.grad = gradient
    norm = nn.utils.clip_grad_norm_(list(weights), clip)
    optimizer.step()
    return float(norm)


def mini_batches(
    asked: AnswerPass,
    rows: Sequence[AnswerRow],
    size: int,
    generator: torch.Generator,
    make: Callable[[Sequence[AnswerRow]], AnswerPass],
) -> Iterator[AnswerPass]:
    """Yield passes of mini-batches, epoch after epoch in another order, without end.

    Args:
        asked: The pass of all rows.
        rows: The rows.
        size: Rows per mini-batch; no fewer than there are: always all of them.
        generator: Draws the orders.
        make: Makes a pass of some rows, where one cannot be taken out of ``asked``.
    """
    owner = torch.tensor([row for row, (_, answer) in enumerate(rows) for _ in answer])
    while True:
        if size >= len(rows):
            yield asked
            continue
        order: Int[Tensor, " r"] = torch.randperm(len(rows), generator=generator)
        for chosen in torch.split(order, size):
            if isinstance(asked, LastBlockPass):
                places = torch.isin(owner, chosen).nonzero().squeeze(1)
                yield asked.select(places.to(asked.targets.device))
            else:
                yield make([rows[row] for row in chosen.tolist()])


def _uniform(outputs: int, inputs: int, generator: torch.Generator) -> Float[Tensor, "o i"]:
    bound = inputs**-0.5
    drawn: Tensor = torch.rand(outputs, inputs, generator=generator) * 2 * bound - bound
    return drawn
