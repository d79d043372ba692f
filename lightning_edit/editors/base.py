"""What every editor is: a LightningModule that turns a batch of requests into a delta."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.edited_model import EditedModel
from lightning_edit.exceptions import (
    ArchitectureError,
    NotBoundError,
    NothingToTrainError,
    SubjectNotFoundError,
)
from lightning_edit.models.view import ModelView, resolve
from lightning_edit.types import EditBatch, EditRequest


class Editor(pl.LightningModule, ABC):
    """Base class of all editors.

    An editor is bound to one language model and turns batches of requests into deltas. It never
    changes
    the model: a :class:`~lightning_edit.edits.ledger.Ledger` applies a delta, takes it back, and
    tells the editor so through :meth:`remember` and :meth:`forget`.

    The language model is deliberately no submodule: checkpoints, optimisers and model summaries see
    only what the editor owns. Hyper-parameters are typed ``__init__`` arguments kept as attributes
    (an editor nested in another one finds the outer one's values in ``self.hparams``).

    Subclasses are either *families* (declared with ``family=True``, never used by themselves) or
    final: to change a final editor, wrap it.
    """

    needs_fit: ClassVar[bool] = False
    """Whether it must be trained (``Trainer.fit``) before it can edit."""
    needs_statistics: ClassVar[bool] = False
    """Whether it needs second moments of the edited layers' keys."""
    needs_subject: ClassVar[bool] = False
    """Whether every request must name its subject."""
    batched: ClassVar[bool] = True
    """Whether several requests are solved together; otherwise a batch is written one by one."""
    sequential: ClassVar[bool] = True
    """Whether it is meant to be applied again and again to one model."""
    edits_weights: ClassVar[bool] = True
    """Whether it changes weights, so that its edits can be merged and exported."""
    architectures: ClassVar[tuple[str, ...]] = ("decoder-only",)
    """Kinds of language model it can edit."""
    decoder_only_because: ClassVar[str] = (
        "it learns prompt and answer as one text that one stack of blocks reads, while here an "
        "encoder reads the prompt and a decoder the answer"
    )
    """Why it cannot edit encoder-decoder models, for the error."""

    _family: ClassVar[bool] = True

    def __init_subclass__(cls, *, family: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, Editor) and not base._family:
                raise TypeError(f"{base.__name__} is final; wrap it instead of subclassing it")
        cls._family = family

    def __init__(self) -> None:
        super().__init__()
        # A tuple hides the language model from nn.Module's registration; see the class docstring.
        self._bound: tuple[nn.Module, Any, ModelView] | None = None
        self._stages: dict[str, float] = {}
        self._inside = 0.0

    # ------------------------------------------------------------------------------------ binding

    def bind(self, model: nn.Module, tokenizer: Any) -> "Editor":
        """Give the editor the language model it edits.

        Args:
            model: A Hugging Face language model, in eval mode.
            tokenizer: Its fast tokenizer.

        Returns:
            The editor itself.

        Raises:
            ArchitectureError: If the editor cannot edit this kind of model.
        """
        view = resolve(model)
        kind = "encoder-decoder" if view.is_encoder_decoder else "decoder-only"
        if kind not in self.architectures:
            raise ArchitectureError(self._refusal(model, kind))
        self._bound = (model, tokenizer, view)
        self.on_bind()
        return self

    def _refusal(self, model: nn.Module, kind: str) -> str:
        """Say why this editor cannot edit a kind of model, and what can be done."""
        able = sorted(cls.__name__ for cls in _finals(Editor) if kind in cls.architectures)
        reason = f": {self.decoder_only_because}" if kind == "encoder-decoder" else ""
        remedy = f"use {', '.join(able)}, or" if able else f"no editor here edits {kind} models;"
        return (
            f"{type(self).__name__} edits {' and '.join(self.architectures)} models, but "
            f"{type(model).__name__} is {kind}{reason}; {remedy} take a model that is "
            f"{' or '.join(self.architectures)}, such as GPT-2, Llama, Qwen or Mistral"
        )

    def on_bind(self) -> None:
        """Prepare what depends on the model, such as default layers and shapes of buffers."""

    def _require_bound(self) -> tuple[nn.Module, Any, ModelView]:
        if self._bound is None:
            raise NotBoundError(
                f"{type(self).__name__} has no language model yet; "
                "call editor.bind(model, tokenizer), or editor.edit_model(model, tokenizer, ...)"
            )
        return self._bound

    @property
    def language_model(self) -> Any:
        """The bound language model."""
        return self._require_bound()[0]

    @property
    def tokenizer(self) -> Any:
        """The bound tokenizer."""
        return self._require_bound()[1]

    @property
    def view(self) -> ModelView:
        """Where the bound model's blocks, projections and head are."""
        return self._require_bound()[2]

    def setup(self, stage: str) -> None:
        """Refuse, before any work is done, to fit what needs no training or has no model.

        Raises:
            NothingToTrainError: If there is nothing to train.
            NotBoundError: If there is no language model.
        """
        if stage == "fit":
            self.require_training()
        self._require_bound()

    def place_language_model(self) -> None:
        """Move the language model to the editor's device; a model spread over devices stays."""
        model = self.language_model
        if getattr(model, "hf_device_map", None) is None and model.device != self.device:
            model.to(self.device)

    # ------------------------------------------------------------------------------------ editing

    @abstractmethod
    def edit(self, batch: EditBatch) -> Delta:
        """Find what writes the batch's requests into the model.

        The model is bit for bit the same when this returns.

        Args:
            batch: Requests and their token ids.

        Returns:
            The update.
        """

    def edit_independent(self, batch: EditBatch) -> list[Delta]:
        """Find one delta per request, each as if it were alone on the current model.

        Families that can search for several requests at once override this; the results are the
        same.

        Args:
            batch: Requests and their token ids.

        Returns:
            One delta a request.
        """
        return [self.edit(part) for part in batch.split()]

    def remember(self, delta: Delta) -> None:
        """Take a committed delta into the editor's history. Called by the ledger."""

    def forget(self, delta: Delta) -> None:
        """Take an undone delta out of the editor's history, exactly. Called by the ledger."""

    def recall(self, delta: Delta) -> None:
        """Learn that a delta is in force whose history a checkpoint has restored already.

        Called by the ledger, in the order of the commits, when an interrupted run goes on.
        """

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block towards a stage of editing.

        The time of a stage inside another one counts only there.

        Args:
            name: ``search`` (target vectors, gradient steps), ``keys`` (what the model reads where
                it is edited) or ``solve``.
        """
        self._finish_queued_work()
        outside, self._inside = self._inside, 0.0
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._finish_queued_work()
            seconds = time.perf_counter() - begin
            self._stages[name] = self._stages.get(name, 0.0) + seconds - self._inside
            self._inside = outside + seconds

    def _finish_queued_work(self) -> None:
        device = self.language_model.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def take_stages(self) -> dict[str, float]:
        """Return seconds by stage since the last call, of editors inside this one too."""
        taken: dict[str, float] = {}
        for module in self.modules():
            if isinstance(module, Editor):
                for name, seconds in module._stages.items():
                    taken[name] = taken.get(name, 0.0) + seconds
                module._stages = {}
        return taken

    def subject_positions(self, batch: EditBatch) -> list[int]:
        """Return each request's last subject token.

        Args:
            batch: Requests and their token ids.

        Returns:
            One position a request.

        Raises:
            SubjectNotFoundError: If a request names no subject.
        """
        missing = [
            request.id
            for request, encoded in zip(batch.requests, batch.encoded, strict=True)
            if encoded.subject_last is None
        ]
        if missing:
            raise SubjectNotFoundError(
                f"{type(self).__name__} edits at the subject's last token, but these requests name "
                f"no subject: {', '.join(missing[:5])}; add `subject` to each, or use an "
                "editor that needs none"
            )
        return [
            encoded.subject_last for encoded in batch.encoded if encoded.subject_last is not None
        ]

    def edit_model(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]],
        seed: int = 0,
    ) -> EditedModel:
        """Edit a model without a Trainer.

        Args:
            model: A Hugging Face language model; it is changed in place until ``undo``.
            tokenizer: Its fast tokenizer.
            requests: One or more requests, or dictionaries with at least ``prompt`` and ``target``.
            seed: Seed of everything random in the edit.

        Returns:
            A handle with ``generate``, ``edit`` (more requests) and ``undo``.

        Raises:
            DataError: If a request is not valid.
        """
        self.bind(model, tokenizer)
        return EditedModel(self).edit(requests, seed)

    # ------------------------------------------------------------------------------------- layers

    @classmethod
    def default_layers(cls, num_blocks: int) -> list[int]:
        """Blocks that are edited unless ``layers`` is given.

        Args:
            num_blocks: Blocks of the language model.

        Returns:
            Their numbers, lowest first. Empty for an editor without layers.
        """
        return []

    @classmethod
    def memory_bytes(cls, view: ModelView, layers: list[int]) -> int:
        """Estimate the memory that one edit needs beside the model.

        Args:
            view: The model's structure.
            layers: Edited blocks.

        Returns:
            Bytes.
        """
        return 0

    # ----------------------------------------------------------------------------------- Lightning

    def on_fit_start(self) -> None:
        """Bring the language model to where the editor is trained."""
        self.place_language_model()

    # Lightning asks for the two below before anything else; `setup` then says what is wrong.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, in editors that are trained."""
        self.require_training()

    def configure_optimizers(self) -> Any:
        """Return the optimiser, in editors that are trained."""
        self.require_training()

    def require_training(self) -> None:
        """Refuse ``fit`` for an editor that has nothing to train.

        Raises:
            NothingToTrainError: If there is nothing to train.
        """
        if not self.needs_fit:
            raise NothingToTrainError(
                f"{type(self).__name__} has nothing to train; "
                "run `lightning-edit edit` or EditTrainer().edit(editor, datamodule) instead of fit"
            )


def _finals(base: type[Any]) -> Iterator[type[Editor]]:
    """Yield the editors that can be used, not their families."""
    for child in base.__subclasses__():
        yield from _finals(child)
        if not child._family:
            yield child
