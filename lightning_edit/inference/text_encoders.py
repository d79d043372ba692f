"""Text encoders: one embedding a text, of the model's own hidden states or a sentence encoder.

Axis names: ``n`` -- texts; ``t`` -- tokens; ``d`` -- width of an embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.eval_mode import evaluating
from lightning_edit.inference.hooks import capture
from lightning_edit.models.prompt_encoder import PromptEncoder
from lightning_edit.models.view import ModelView, resolve

#: Depth of the block whose output is read. Of SmolLM2's blocks the one at a quarter finds most:
#: of 60 paraphrases of COUNTERFACT 55 %, in the middle 40 %, behind the embedding 42 %.
_DEPTH = 0.25


class TextEncoder(ABC):
    """Encoder of texts as unit vectors; every text is encoded once."""

    def __init__(self) -> None:
        self._known: dict[str, Float[Tensor, " d"]] = {}

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return one unit vector for each text, in float64 on the CPU.

        Args:
            texts: At least one text.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._encode(new).double().cpu()
            lengths = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            self._known |= zip(new, vectors / lengths, strict=True)
        return torch.stack([self._known[text] for text in texts])

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return one vector for each text, of any length."""


class HiddenStateEncoder(TextEncoder):
    """Encoder by a language model's own hidden states: needs nothing else, finds less.

    A text's vector is the mean over its tokens of the block's output, each scaled to length one,
    since the first token's hidden state is a hundred times longer than the others' in many models.
    Each text is read alone, so that its vector depends on no other text; it is plain text, without
    a chat template, cut to the model's positions. The weights are read when a text is first
    encoded.

    Args:
        model: A Hugging Face language model; of two stacks the encoder is read.
        tokenizer: Its fast tokenizer, or a prompt encoder.
        block: Block whose output is read; ``None``: at a quarter of the depth.

    Raises:
        ConfigError: If the model has no such block.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, block: int | None = None) -> None:
        super().__init__()
        self._prompts = PromptEncoder.for_model(model, tokenizer)
        self._view: ModelView = resolve(model)
        blocks = self._view.encoder_blocks or self._view.blocks
        place = round(_DEPTH * (len(blocks) - 1)) if block is None else block
        if not 0 <= place < len(blocks):
            raise ConfigError(
                f"a text is encoded by one of the blocks 0 to {len(blocks) - 1}; got {block}"
            )
        self._name = blocks[place].name

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        model = self._view.model
        with evaluating(model):
            return torch.stack([self._encode_one(model, text) for text in texts])

    def _encode_one(self, model: nn.Module, text: str) -> Float[Tensor, " d"]:
        limits = self._prompts.limits
        room = limits.encoder if self._prompts.two_stacks else limits.positions
        ids = self._prompts.running(text, room)
        if not ids:
            return torch.zeros(self._view.hidden_size)
        device = self._view.embeddings.get_parameter("weight").device
        with capture(model, {self._name: "output"}, stop=True) as seen:
            model(input_ids=torch.tensor([ids], device=device))
        # On the CPU first: some devices lack float64.
        states: Float[Tensor, "t d"] = seen[self._name][0].cpu().double()
        units: Tensor = states / states.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return units.mean(0)


class SentenceEncoder(TextEncoder):
    """Encoder by a model of ``sentence-transformers``, loaded when the first text is encoded.

    Args:
        name: Folder of a model, or its name on the hub.
        batch_size: Texts per pass.
    """

    def __init__(self, name: str, batch_size: int = 64) -> None:
        super().__init__()
        self.name = name
        self.batch_size = batch_size
        self._model: Any = None

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        if self._model is None:
            self._model = _load(self.name)
        found: Tensor = self._model.encode(
            list(texts),
            batch_size=self.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return found


def _load(name: str) -> Any:
    """Load a sentence encoder on the CPU.

    Raises:
        ConfigError: If ``sentence-transformers`` is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f"the encoder {name!r} is one of sentence-transformers, which is not installed: "
            'pip install "lightning-edit[retrieval]"; or take the encoder "lexical" or "hidden", '
            "which need nothing"
        ) from error
    try:
        return SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the sentence encoder {name!r} cannot be loaded ({str(error).splitlines()[0]}); give "
            'the folder of a model, its name on the hub, or "lexical" or "hidden"'
        ) from error
