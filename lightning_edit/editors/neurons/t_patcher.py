"""T-Patcher: Huang et al., Transformer-Patcher: One Mistake Worth One Neuron, ICLR 2023.

arXiv 2301.09785. Axis names: ``n`` -- extra neurons; ``d`` -- hidden width; ``m`` -- hidden states
in memory; ``a`` -- answer tokens.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.neurons.answer_pass import (
    AnswerPass,
    answer_pass,
    read_answers,
    read_inputs,
    read_states,
)
from lightning_edit.editors.neurons.beside_ffn import (
    Branch,
    BranchRuntime,
    activation_of,
    total,
)
from lightning_edit.editors.neurons.ffn_memory import FFNMemory, memory_texts, without
from lightning_edit.editors.neurons.patch import (
    FOUND,
    Neurons,
    Patch,
    PatchObjective,
    PatchSchedule,
    train_patch,
    wrong_places,
)
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.extra_neurons import Activation
from lightning_edit.functional.patch_losses import MARGINS, smoothed_nll
from lightning_edit.models.prompt_encoder import Ids
from lightning_edit.models.view import ModelView
from lightning_edit.statistics.cache import is_embedded
from lightning_edit.types import EditBatch, EditRequest, Encoded

log = logging.getLogger(__name__)


class TPatcher(Editor):
    r"""Transformer-Patcher: one extra neuron in the last feed-forward network per wrong token.

    :math:`\mathrm{FFN}'(h) = \mathrm{FFN}(h) + V\,\mathrm{act}(K h + b)`. A neuron is trained to
    fire on the hidden state where a token of the answer is wrong, to stay silent on a memory of
    other hidden states, and to make the token right. Neurons of earlier edits are frozen, and their
    hidden states join the memory.

    With two stacks they stand in the decoder (the paper's BART), where the wrong token is
    predicted, and the memory holds the decoder's states: each text is cut into a prompt, which the
    encoder reads, and an answer, its last word (of text without spaces, its second half). The EOS
    behind an answer is one of its tokens there, as the paper's labels have it.

    Args:
        layers: The one block whose network gets neurons; ``None``: the last. Others run the whole
            model at every step.
        max_neurons: Most neurons of an edit (5 in the authors' code).
        margins: ``fever``: (m_a, m1, m2) = (0, 3, −3), the paper's. ``zsre``: (0, 0, 0), in effect
            in the authors' code for generated answers, whatever its options say.
        activation_weight: c_a (1 in the authors' scripts).
        memory_weight: c_m (10 in the zsRE script, 5 in the FEVER script).
        memory: Text on which neurons learn to be silent: a file or data set, or texts; ``None``:
            the embedded atlas, plain English about geography, with a warning for any other model.
            It should be of the domain in which the model is used.
        memory_tokens: Tokens of it that are read; a fifth serves the stopping rule. The authors
            keep the states of 40,000 examples.
        update_memory: Whether hidden states of the edits in force join the memory.
        activation: Activation function of the neurons, by its name in transformers; ``None``: the
            network's own. Neurons have no gate in gated networks either.
        steps: Most optimiser steps (2000 in the authors' code).
        lr: Adam's learning rate (1e-2 in the authors' code).
        weight_decay: Its weight decay (1e-2 in the authors' code).
        smoothing: Label smoothing of the edit loss (0.1 in the authors' code).
        scale: Start of the scale that multiplies the random values (10 in the authors' code).
        activation_worst: Values in the mean of the activation loss (5).
        memory_worst: Values in each mean of the memory loss (1000).
        copies: Copies of the edit in the authors' batch (8): of the worst values so many are equal.

    Note:
        Sequential by design: a batch is written one request after another. A request that the model
        answers already gets no neuron; its commit changes nothing. Undoing an edit removes its
        neurons and its share of the memory; neurons of later edits stay as they were trained.
        Texts of the memory that state the fact itself are left out of its edit. With SiLU or GELU a
        silent neuron is not exactly zero, so that many edits leak; ``activation="relu"`` does not.
        Behind a norm (Gemma 2 and 3) what neurons can write is bounded, and a smaller ``scale``
        learns faster. The authors' other memory loss, a KL divergence, is not here.
    """

    edits_weights: ClassVar[bool] = False
    batched: ClassVar[bool] = False
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    def __init__(
        self,
        layers: list[int] | None = None,
        max_neurons: int = 5,
        margins: Literal["fever", "zsre"] = "fever",
        activation_weight: float = 1.0,
        memory_weight: float = 10.0,
        memory: str | list[str] | None = None,
        memory_tokens: int = 4096,
        update_memory: bool = True,
        activation: str | None = None,
        steps: int = 2000,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        smoothing: float = 0.1,
        scale: float = 10.0,
        activation_worst: int = 5,
        memory_worst: int = 1000,
        copies: int = 8,
    ) -> None:
        super().__init__()
        counts = {"max_neurons": max_neurons, "steps": steps, "memory_tokens": memory_tokens}
        counts |= {"activation_worst": activation_worst, "memory_worst": memory_worst}
        counts |= {"copies": copies}
        if wrong := {name: value for name, value in counts.items() if value < 1}:
            raise ConfigError(f"TPatcher: expected whole numbers of 1 or more, got {wrong}")
        if lr <= 0 or not 0 <= smoothing < 1 or margins not in MARGINS:
            raise ConfigError(
                "TPatcher: expected lr > 0, smoothing in [0, 1) and margins of "
                f"{' or '.join(MARGINS)}, got lr={lr}, smoothing={smoothing}, margins={margins!r}"
            )
        if layers is not None and len(layers) != 1:
            raise ConfigError(f"TPatcher adds neurons to one block, got layers={layers}; name one")
        self.layers = layers
        self.max_neurons = max_neurons
        self.margins: Literal["fever", "zsre"] = margins
        self.activation_weight = activation_weight
        self.memory_weight = memory_weight
        self.memory = memory
        self.memory_tokens = memory_tokens
        self.update_memory = update_memory
        self.activation = activation
        self.steps = steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.smoothing = smoothing
        self.scale = scale
        self.activation_worst = activation_worst
        self.memory_worst = memory_worst
        self.copies = copies

    @property
    def objective(self) -> PatchObjective:
        """Weights and sizes of the activation loss and the memory loss."""
        return PatchObjective(
            MARGINS[self.margins],
            self.activation_weight,
            self.memory_weight,
            self.activation_worst,
            self.memory_worst,
            self.copies,
        )

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Return the default layer, the last block (BART and BERT in the paper)."""
        return [num_blocks - 1]

    @property
    def layer(self) -> int:
        """Block whose network gets the neurons, of the bound model."""
        return (self.layers or self.default_layers(self.view.num_blocks))[0]

    def on_bind(self) -> None:
        """Find the network and its activation function."""
        self._module = self.view.block(self.layer).mlp_down
        # In a tuple, so that a module of the language model does not become one of the editor.
        self._activation = (activation_of(self.view, self.layer, self.activation),)
        self._texts: FFNMemory | None = None
        self._runtime = BranchRuntime(self.view, self._branches)

    @property
    def _act(self) -> Activation:
        return self._activation[0]

    def runtime(self) -> BranchRuntime:
        """Return what puts the neurons of the edits in force beside the network."""
        return self._runtime

    def _branches(self, in_force: Sequence[Delta]) -> Mapping[int, Branch]:
        parts = [Neurons.from_state(one.state, self._module) for one in in_force]
        neurons = Neurons.joined(parts)
        return {self.layer: neurons.branch(self._act)} if len(neurons.bias) else {}

    # ------------------------------------------------------------------------------------ editing

    def edit(self, batch: EditBatch) -> Delta:
        """Train the neurons of each request, one request after another.

        Args:
            batch: The requests.

        Returns:
            The neurons as state, and the requests' hidden states as history.
        """
        earlier = [one.history["hidden"] for one in self._runtime.in_force]
        parts: list[Neurons] = []
        hidden: list[Tensor] = []
        info: dict[str, list[Any]] = {"neurons": []}
        with torch.inference_mode(False), torch.enable_grad():
            memory = self._memory()
            for request, encoded in zip(batch.requests, batch.encoded, strict=True):
                neurons, found = self._train(
                    request, encoded, memory, [*earlier, *hidden], parts, batch.seed
                )
                parts.append(neurons)
                hidden.append(self._states(encoded))
                info["neurons"].append(len(neurons.bias))
                for name, value in found.items():
                    info.setdefault(name, []).append(value)
        return Delta(
            batch.ids,
            state=Neurons.joined(parts).state(self._module),
            info=info,
            history={"hidden": torch.cat(hidden)},
        )

    def _states(self, encoded: Encoded) -> Float[Tensor, "_ d"]:
        """Return the hidden states of an edit that join the memory of later ones."""
        prompt, answer = self._row(encoded)
        if self.view.is_encoder_decoder:
            return read_answers(self.view, [(prompt, answer)], self.layer)[0]
        return read_states(self.view, [(*prompt, *answer[:-1])], self.layer)[0][1:]

    def _row(self, encoded: Encoded) -> tuple[Ids, Ids]:
        """Return a prompt and the tokens that its answer is learnt as."""
        answer = self.prompts.labels(self.language_model, encoded.target_ids)
        return encoded.prompt_ids, answer

    def _memory(self) -> FFNMemory:
        if self._texts is None:
            if self.memory is None and not is_embedded(self.language_model):
                log.warning(
                    "TPatcher: the neurons learn to be silent on sentences of the embedded atlas "
                    "(plain English about geography), not on text of this model's domain; give "
                    "`memory` a file or data set of yours"
                )
            with self.stage("keys"):
                self._texts = FFNMemory.read(
                    self.view, self.prompts, memory_texts(self.memory), self.layer,
                    self.memory_tokens,
                )  # fmt: skip
        return self._texts

    def _train(
        self,
        request: EditRequest,
        encoded: Encoded,
        memory: FFNMemory,
        earlier: Sequence[Float[Tensor, "_ d"]],
        parts: list[Neurons],
        seed: int,
    ) -> tuple[Neurons, dict[str, Any]]:
        """Train the neurons of one request beside those of this batch so far."""
        row = self._row(encoded)
        with self.stage("keys"):
            inputs = read_inputs(self.view, [row], self.layer)
            asked = answer_pass(self.view, [row], [self.layer], self._runtime.branches)
        before = [Neurons.joined(parts).branch(self._act)] if parts else []
        with torch.no_grad():
            wrong = wrong_places(
                asked.logits({self.layer: total([_nothing, *before])}),
                asked.targets,
                self.max_neurons,
            )
        own = inputs[wrong.to(inputs.device)]
        patch = Patch(own, self.scale, torch.Generator().manual_seed(seed))
        if not len(wrong):
            return patch.neurons(), dict.fromkeys(FOUND) | {"steps": 0, "right": True}
        train, held_out = memory.halves(request)
        if self.update_memory:
            train = [*train, *(states.to(own) for states in earlier)]
        with self.stage("search"):
            found = train_patch(
                patch,
                own,
                without(torch.cat(train), own),
                without(torch.cat(held_out), own),
                lambda now: self._edit_loss(asked, now, before),
                self.objective,
                PatchSchedule(self.steps, self.lr, self.weight_decay),
                self.progress,
            )
        return patch.neurons(), found

    def _edit_loss(
        self, asked: AnswerPass, patch: Patch, before: Sequence[Branch]
    ) -> tuple[Float[Tensor, ""], bool]:
        """Return the smoothed loss of the answer, and whether every token is the first choice."""
        own: Branch = lambda hidden: patch.added(hidden, self._act)  # noqa: E731  # a closure with a type
        logits = asked.logits({self.layer: total([own, *before])})
        right = bool((logits.argmax(-1) == asked.targets).all())
        return smoothed_nll(logits, asked.targets, self.smoothing).mean(), right

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: the hidden states in memory, in float32."""
        return 4 * 4096 * view.hidden_size


def _nothing(hidden: Tensor) -> Tensor:
    return torch.zeros_like(hidden)
