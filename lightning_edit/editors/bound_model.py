"""The language model that an editor is bound to, and what it chose for that model."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn

from lightning_edit.editors.checks import require_finite_arguments
from lightning_edit.exceptions import ArchitectureError, NotBoundError, SubjectNotFoundError
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import ModelView
from lightning_edit.types import EditBatch

log = logging.getLogger(__name__)


class BoundModel(nn.Module, ABC):
    """Language model, tokenizer and structure that :meth:`Editor.bind` sets.

    The model is kept in a tuple, which hides it from the registration of submodules.
    """

    architectures: ClassVar[tuple[str, ...]] = ("decoder-only",)
    """Model architectures that the editor supports."""
    decoder_only_because: ClassVar[str] = (
        "it learns prompt and answer as one text that one stack of blocks reads, while here an "
        "encoder reads the prompt and a decoder the answer"
    )
    """Why encoder-decoder models are not supported, for the error message."""

    def __init__(self) -> None:
        super().__init__()
        # A tuple hides the language model from nn.Module's registration.
        self._bound: tuple[nn.Module, Any, ModelView] | None = None
        self._prompts: PromptEncoder | None = None
        self.chosen: dict[str, Any] = {}
        """Values that ``auto`` settings have on the bound model."""

    @classmethod
    @abstractmethod
    def _finals(cls) -> Iterable[type[Any]]:
        """Return all editors that are no family, for the names in an error message."""

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
    def prompts(self) -> PromptEncoder:
        """The bound tokenizer with the format of prompts: what tokenises requests and probes."""
        self._require_bound()
        assert self._prompts is not None  # set together with the model
        return self._prompts

    @property
    def view(self) -> ModelView:
        """The bound model's structure: its blocks, projections and head."""
        return self._require_bound()[2]

    def chose(self, values: Mapping[str, Any]) -> None:
        """Note the values that ``auto`` settings have on the bound model, and log new ones.

        They are in :attr:`chosen`, in ``results.json`` and in the ``info`` of the edits.

        Args:
            values: By argument: a number, or one for each layer.
        """
        new = {name: value for name, value in values.items() if self.chosen.get(name) != value}
        self.chosen |= values
        if new:
            told = ", ".join(f"{name} = {_shown(value)}" for name, value in new.items())
            log.info("%s: auto is %s", type(self).__name__, told)

    def chosen_info(self) -> dict[str, Any]:
        """Return what an edit's ``info`` says of ``auto`` settings; nothing where there is none."""
        return {"auto": dict(self.chosen)} if self.chosen else {}

    def check_arguments(self) -> None:
        """Check the numeric arguments of this editor and of those that it wraps.

        Raises:
            ConfigError: If one is not finite.
        """
        for module in self.modules():
            if isinstance(module, BoundModel):
                require_finite_arguments(module)

    def require_kind(self, view: ModelView) -> None:
        """Check that this editor edits models of a kind: decoder-only or encoder-decoder.

        Args:
            view: A model's structure.

        Raises:
            ArchitectureError: If it does not.
        """
        kind = "encoder-decoder" if view.is_encoder_decoder else "decoder-only"
        if kind not in self.architectures:
            raise ArchitectureError(self._architecture_message(view.model, kind))

    def _architecture_message(self, model: nn.Module, kind: str) -> str:
        """Return the error message for an unsupported architecture, with a remedy."""
        able = sorted(cls.__name__ for cls in self._finals() if kind in cls.architectures)
        reason = f": {self.decoder_only_because}" if kind == "encoder-decoder" else ""
        remedy = f"use {', '.join(able)}, or" if able else f"no editor here edits {kind} models;"
        return (
            f"{type(self).__name__} edits {' and '.join(self.architectures)} models, but "
            f"{type(model).__name__} is {kind}{reason}; {remedy} take a model that is "
            f"{' or '.join(self.architectures)}, such as GPT-2, Llama, Qwen or Mistral"
        )

    def subject_positions(self, batch: EditBatch) -> list[int]:
        """Return the position of each request's last subject token.

        Args:
            batch: Requests and their token ids.

        Returns:
            One position per request.

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


def _shown(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(dict.fromkeys(f"{one:.4g}" for one in values))
