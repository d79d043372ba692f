"""Routing editors: a memory of edits as text, a scope classifier, and a counterfactual model.

The networks, their files, and asking are here; a subclass trains them.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.hypernetwork.checkpoint import EditorCheckpoint
from lightning_edit.editors.routing import networks
from lightning_edit.editors.routing.memory import ScopeMemory, stored_delta
from lightning_edit.editors.routing.networks import ScopeKind
from lightning_edit.editors.routing.routed_responder import RoutedResponder
from lightning_edit.editors.routing.scope_classifier import ScopeClassifier
from lightning_edit.editors.routing.soft_responder import SoftResponder
from lightning_edit.edits.delta import Delta
from lightning_edit.exceptions import ArchitectureError, ConfigError
from lightning_edit.inference.model_responder import ModelResponder
from lightning_edit.inference.responder import Responder
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.prompt_format import PromptFormat
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

log = logging.getLogger(__name__)

Mixing = Literal["hard", "soft"]
#: File of the learned parts in a folder that ships edits.
PARTS = "parts.safetensors"


class RoutingEditor(Editor, family=True):
    """Family of editors that keep edits as text and send prompts in scope to another model.

    Args:
        classifier: Encoder of the scope classifier; see :class:`SERAC`.
        classifier_kind: ``embedding`` or ``cross-attention``.
        classifier_hidden: Width of a new encoder.
        classifier_layers: Blocks of a new encoder.
        classifier_heads: Attention heads of a new encoder.
        dist_heads: Slices of an encoder's vector.
        scale: Factor of the distance.
        cosine: Cosine distance.
        bounded: Vectors through tanh.
        counterfactual: Counterfactual model; see :class:`SERAC`.
        counterfactual_hidden: Width of a new one.
        counterfactual_layers: Blocks of a new one, or kept of the base model's.
        counterfactual_heads: Attention heads of a new one.
        mixing: ``hard`` or ``soft``.
        seed: Seed of new weights.
        checkpoint: File with trained networks.
    """

    needs_fit: ClassVar[bool] = True
    batched: ClassVar[bool] = False
    edits_weights: ClassVar[bool] = False
    both_forms: ClassVar[bool] = True
    structure: ClassVar[tuple[str, ...]] = (
        "classifier_kind", "dist_heads", "scale", "cosine", "bounded",
    )  # fmt: skip
    """Arguments that a checkpoint restores; the networks come with their configs."""
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only", "encoder-decoder")

    trained_batches: Tensor

    def __init__(
        self,
        classifier: str,
        classifier_kind: ScopeKind,
        classifier_hidden: int,
        classifier_layers: int,
        classifier_heads: int,
        dist_heads: int,
        scale: float,
        cosine: bool,
        bounded: bool,
        counterfactual: str,
        counterfactual_hidden: int,
        counterfactual_layers: int,
        counterfactual_heads: int,
        mixing: Mixing,
        seed: int,
        checkpoint: str | None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.classifier_kind: ScopeKind = classifier_kind
        self.classifier_hidden = classifier_hidden
        self.classifier_layers = classifier_layers
        self.classifier_heads = classifier_heads
        self.dist_heads = dist_heads
        self.scale = scale
        self.cosine = cosine
        self.bounded = bounded
        self.counterfactual = counterfactual
        self.counterfactual_hidden = counterfactual_hidden
        self.counterfactual_layers = counterfactual_layers
        self.counterfactual_heads = counterfactual_heads
        self.mixing = mixing
        self.seed = seed
        self.checkpoint = checkpoint
        self.scope: ScopeClassifier | None = None
        self.other: Any = None
        self.memory: ScopeMemory | None = None
        self._tokenizers: dict[str, Any] = {}
        self._other_prompts: PromptEncoder | None = None
        self._vocabulary = ""
        self._trained_on: dict[str, Any] = {}
        self.register_buffer("trained_batches", torch.zeros((), dtype=torch.int64))

    @property
    def is_trained(self) -> bool:
        """Whether the networks have had a training step or come from a checkpoint."""
        return bool(self.trained_batches > 0)

    # ------------------------------------------------------------------------------------ binding

    def on_bind(self) -> None:
        """Build the networks, or check that existing ones fit the model's tokenizer.

        Raises:
            ArchitectureError: If trained networks read another vocabulary.
            CheckpointError: If the checkpoint cannot be read or belongs to another editor.
            ConfigError: If two vocabularies cannot be mixed, or an argument does not fit.
        """
        if self.checkpoint is not None and self.scope is None:
            self._restore(EditorCheckpoint.read(Path(self.checkpoint)))
        vocabulary = _vocabulary(self.tokenizer)
        if self._vocabulary and self._vocabulary != vocabulary:
            if self.is_trained and not self._reads_alone:
                raise ArchitectureError(
                    f"{type(self).__name__} was trained with another vocabulary than that of "
                    f"{type(self.tokenizer).__name__} ({len(self.tokenizer)} tokens); bind it to a "
                    "model with the tokenizer it was trained with, or train a new one with "
                    "`lightning-edit fit`"
                )
            if not self.is_trained:
                self.scope, self.other, self._tokenizers = None, None, {}
        if self.scope is None:
            self._build()
        self._vocabulary = vocabulary
        assert self.scope is not None
        self.scope.read_with(self._tokenizers.get("classifier", self.tokenizer))
        device = self.language_model.device
        self.scope.to(device)
        self.other.to(device)
        if self.mixing == "soft":
            self.require_one_vocabulary('mixing="soft"')
        tokenizer = self._tokenizers.get("counterfactual", self.tokenizer)
        form = PromptFormat(separator=self.prompts.form.separator)
        encoder = PromptEncoder(tokenizer, form)
        self._other_prompts = PromptEncoder.for_model(self.other, encoder)
        self.memory = ScopeMemory(self.scope)

    @property
    def _reads_alone(self) -> bool:
        """Whether both networks have tokenizers of their own."""
        return {"classifier", "counterfactual"} <= set(self._tokenizers)

    def _build(self) -> None:
        self.scope = self.new_scope()
        base, layers = self.language_model, self.counterfactual_layers
        if self.counterfactual == "base":
            self.other = networks.first_blocks(base, layers)
        elif self.counterfactual == "scratch":
            width, heads = self.counterfactual_hidden, self.counterfactual_heads
            self.other = networks.build_language_model(base, width, layers, heads, self.seed)
        else:
            self.other, own = networks.load_counterfactual(self.counterfactual)
            self._tokenizers["counterfactual"] = own

    def new_scope(self) -> ScopeClassifier:
        """Build the scope classifier as it is before training."""
        if self.classifier in ("base", "scratch"):
            network = networks.build_encoder(
                self.classifier_kind,
                self.language_model,
                self.classifier_hidden,
                self.classifier_layers,
                self.classifier_heads,
                self.seed,
                from_model=self.classifier == "base",
            )
        else:
            network, own = networks.load_encoder(self.classifier_kind, self.classifier)
            self._tokenizers["classifier"] = own
        scope = self._classifier_of(network)
        scope.read_with(self._tokenizers.get("classifier", self.tokenizer))
        return scope

    def _classifier_of(self, network: Any) -> ScopeClassifier:
        return ScopeClassifier(
            network, self.classifier_kind, self.dist_heads, self.scale, self.cosine, self.bounded
        )

    @property
    def one_vocabulary(self) -> bool:
        """Whether base and counterfactual model have the same tokens and outputs."""
        own = self._tokenizers.get("counterfactual")
        rows = [
            model.get_output_embeddings().weight.shape[0]
            for model in (self.language_model, self.other)
        ]
        return rows[0] == rows[1] and (own is None or _vocabulary(own) == self._vocabulary)

    def require_one_vocabulary(self, wanted: str) -> None:
        """Refuse to mix the predictions of models of different vocabularies.

        Args:
            wanted: The setting that mixes them, for the error message.

        Raises:
            ConfigError: If the vocabularies differ, or the language model is asked through a chat
                template, behind which the same answer has other tokens.
        """
        if self.prompts.form.chat:
            raise ConfigError(
                f"{wanted} adds probabilities token by token, but the language model answers "
                "behind its chat template and the counterfactual model behind plain text, where an "
                "answer's tokens are others; ask in plain text (--lm_chat false), or take "
                'mixing="hard" and objective="supervised", which compare text'
            )
        if not self.one_vocabulary:
            raise ConfigError(
                f"{wanted} adds probabilities token by token, so it expects one vocabulary, but "
                f"the counterfactual model ({self.counterfactual}) has another one than the "
                'language model; take a counterfactual model with its tokenizer, or mixing="hard" '
                'and objective="supervised", which compare text'
            )

    @property
    def other_prompts(self) -> PromptEncoder:
        """Token ids of the counterfactual model, which reads plain text."""
        assert self._other_prompts is not None  # made when the editor was bound
        return self._other_prompts

    # -------------------------------------------------------------------------------------- files

    def describe(self) -> EditorCheckpoint:
        """Return the editor as a checkpoint: parameters, configs and tokenizers of its networks."""
        assert self.scope is not None
        arguments: dict[str, Any] = {name: getattr(self, name) for name in self.structure}
        arguments["networks"] = {
            "classifier": networks.describe_network(self.scope.network),
            "counterfactual": networks.describe_network(self.other),
        }
        arguments["tokenizers"] = {
            name: networks.describe_tokenizer(one) for name, one in self._tokenizers.items()
        }
        arguments["vocabulary"] = self._vocabulary
        state = {name: value.clone() for name, value in self.state_dict().items()}
        return EditorCheckpoint(type(self).__name__, {}, arguments, state, self._trained_on)

    def _restore(self, stored: EditorCheckpoint, weights: bool = True) -> None:
        stored.restore_arguments(self, self.structure)
        described: Mapping[str, Any] = stored.arguments["networks"]
        network = networks.rebuild_network(self.classifier_kind, described["classifier"])
        self.scope = self._classifier_of(network)
        self.other = networks.rebuild_network("language-model", described["counterfactual"])
        listed: Mapping[str, Any] = stored.arguments["tokenizers"]
        self._tokenizers = {name: networks.rebuild_tokenizer(one) for name, one in listed.items()}
        self._vocabulary = stored.arguments["vocabulary"]
        self._trained_on = dict(stored.language_model)
        if weights:
            stored.load_into(self)

    def save_weights(self, path: str | Path) -> None:
        """Save the trained networks as safetensors, for the argument ``checkpoint``.

        Args:
            path: File to write, ending in ``.safetensors``.
        """
        self.describe().write(Path(path))

    def renamed_arguments(self) -> Mapping[str, Any]:
        """Return the arguments that the parts stand for: a folder is of no use elsewhere."""
        built = ("base", "scratch")
        return {
            name: "scratch"
            for name in ("classifier", "counterfactual")
            if getattr(self, name) not in built
        }

    def save_parts(self, folder: Path) -> None:
        """Save the networks with their configs and tokenizers, to ship them with edits.

        Args:
            folder: Folder to write into.
        """
        self.save_weights(folder / PARTS)

    def load_parts(self, folder: Path) -> None:
        """Load what :meth:`save_parts` wrote; before or after binding.

        Args:
            folder: The folder.

        Raises:
            CheckpointError: If the folder holds no such parts.
        """
        self._restore(EditorCheckpoint.read(folder / PARTS))
        if self._bound is not None:
            self.on_bind()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the networks' configs and tokenizers to a Lightning checkpoint."""
        checkpoint[EditorCheckpoint.KEY] = self.describe().header()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the networks of a Lightning checkpoint, if there are none yet.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            CheckpointError: If it holds no trained editor, or one of another class.
        """
        stored = EditorCheckpoint.of(checkpoint, "the checkpoint")
        if self.scope is None:
            self._restore(stored, weights=False)
        self.forget_vectors()

    def forget_vectors(self) -> None:
        """Forget what was computed with the classifier, whose parameters have changed."""
        if self.memory is not None:
            self.memory.forget_vectors()

    # ------------------------------------------------------------------------------------- asking

    def edit(self, batch: EditBatch) -> Delta:
        """Return the edits as text; nothing is computed."""
        self._require_bound()
        if not self.is_trained:
            log.warning(
                "%s is not trained, so neither does its classifier know the scope of an edit nor "
                "its counterfactual model how to answer with one; train it with `lightning-edit "
                "fit`, or give `checkpoint`",
                type(self).__name__,
            )
        return stored_delta(batch.requests)

    def runtime(self) -> ScopeMemory | None:
        """Return the memory of the edits in force."""
        return self.memory

    def responder(self, in_force: Sequence[Delta], batch_size: int = 64) -> Responder:
        """Return what sends each prompt to the base model or to the counterfactual model.

        Args:
            in_force: The edits in force; :meth:`runtime` holds them.
            batch_size: Rows per forward pass.
        """
        assert self.memory is not None  # made when the editor was bound
        return self.responder_of(self.memory, batch_size)

    def responder_of(self, memory: ScopeMemory, batch_size: int = 64) -> Responder:
        """Return a responder for a memory of edits.

        Args:
            memory: The memory.
            batch_size: Rows per forward pass.
        """
        base = super().responder((), batch_size)
        own, foreign = self.prompts, self.other_prompts
        if self.mixing == "soft":
            return SoftResponder(memory, base, (self.language_model, self.other), (own, foreign))
        other = ModelResponder(self.other, foreign, batch_size)
        # Behind a chat template an answer begins with other tokens than behind plain text.
        same_tokens = self.one_vocabulary and not own.form.chat
        return RoutedResponder(memory, base, other, own, None if same_tokens else foreign)

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate extra memory: two small models in float32, with embeddings of the model's."""
        table = view.embeddings.get_parameter("weight")
        return 4 * (3 * table.numel() + 2 * 2 * 12 * view.hidden_size**2)


def _vocabulary(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's tokens and their numbers."""
    listed = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(listed.encode()).hexdigest()
