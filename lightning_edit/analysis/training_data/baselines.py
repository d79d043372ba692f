"""Baselines of training data attribution without gradients: BM25 and hidden-state cosine.

On identification tasks similar representations find what influence functions miss (arXiv
2409.19998). Axis names: ``n`` -- training texts; ``q`` -- queries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_edit.exceptions import ConfigError
from lightning_edit.functional.words import words
from lightning_edit.inference.text_encoders import HiddenStateEncoder


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> Float[Tensor, "n q"]:
    """Return BM25 scores of training texts for queries, with the package ``bm25s``.

    Words are normalised; of scripts without blanks every character is a word.

    Args:
        texts: The training texts.
        queries: The queries: a fact's prompt and answer.

    Raises:
        ConfigError: If ``bm25s`` is not installed.
    """
    index = require_bm25()()
    index.index([_words(text) for text in texts], show_progress=False)
    columns = [torch.as_tensor(index.get_scores(_words(query))).double() for query in queries]
    return torch.stack(columns, dim=1)


def require_bm25() -> Any:
    """Return the class ``BM25`` of ``bm25s``.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        from bm25s import BM25
    except ImportError as error:
        raise ConfigError(
            "BM25 needs the package bm25s, which is not installed: "
            'pip install "lightning-edit[attribution]"; or leave BM25 out'
        ) from error
    return BM25


def hidden_state_scores(
    model: Any, encoder: Any, texts: Sequence[str], queries: Sequence[str]
) -> Float[Tensor, "n q"]:
    """Return cosines of mean hidden states of training texts and queries.

    Args:
        model: The fine-tuned language model.
        encoder: Its tokenizer, or a prompt encoder.
        texts: The training texts.
        queries: The queries: a fact's prompt and answer.
    """
    vectors = HiddenStateEncoder(model, encoder)
    return vectors.encode(texts) @ vectors.encode(queries).mT


def _words(text: str) -> list[str]:
    return [word.text for word in words(text)] or [text]
