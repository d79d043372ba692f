"""Retrieval: which of the stored texts are nearest to a query, by exact search.

Two indexes: shared character sequences, which need nothing but the texts, and embeddings, a matrix
product. An index is searched with one query at a time, so that what a query finds depends on no
other query. Axis names: ``n`` -- texts; ``d`` -- width of an embedding.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_edit.inference.text_encoders import (
    HiddenStateEncoder,
    SentenceEncoder,
    TextEncoder,
)
from lightning_edit.types.scripts import is_joined

#: Characters of a sequence, blanks before and after a word included.
_LENGTH = 4
#: The same where words are written without blanks, and characters say more.
_JOINED_LENGTH = 2
#: Scores are compared to as many decimals: products of equal vectors differ in the last bits.
_DECIMALS = 9


class Hit(NamedTuple):
    """A text that was found.

    Args:
        place: Its place in the index.
        score: How near it is, at most 1.
    """

    place: int
    score: float


class TextIndex(ABC):
    """Index of texts that a query is compared with."""

    @abstractmethod
    def scores(self, query: str) -> Float[Tensor, " n"]:
        """Return how near each text is to a query, at most 1.

        Args:
            query: The query.
        """

    def nearest(self, query: str, k: int, newest_first: bool = False) -> list[Hit]:
        """Return the ``k`` nearest texts, the nearest one first.

        Args:
            query: The query.
            k: Number of texts; fewer are returned where there are fewer.
            newest_first: Whether of equally near texts the later one comes first.
        """
        found = self.scores(query).round(decimals=_DECIMALS)
        places = torch.arange(len(found), device=found.device)
        if newest_first:
            places = places.flip(0)
        order = places[torch.sort(found[places], descending=True, stable=True).indices[:k]]
        return [Hit(int(place), float(found[place])) for place in order]


#: Makes the index of a list of texts.
MakeIndex = Callable[[Sequence[str]], TextIndex]


class LexicalIndex(TextIndex):
    r"""Index by shared character sequences: how much of a text stands in the query.

    A text's score is the share of its character sequences that the query has, each weighted by
    BM25's inverse document frequency, :math:`\ln(1 + (n - n_s + ½) / (n_s + ½))`. Sequences (four
    characters; two where words are written without blanks) match inflected names, in any script. 1:
    all of the text stands in the query.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._numbers: dict[str, int] = {}
        sequences: list[int] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            for one in character_sequences(text):
                sequences.append(self._numbers.setdefault(one, len(self._numbers)))
                owners.append(owner)
        by_sequence = torch.tensor(sequences, dtype=torch.long)
        order = torch.argsort(by_sequence, stable=True)
        self._owners = torch.tensor(owners, dtype=torch.long)[order]
        counts = torch.bincount(by_sequence, minlength=len(self._numbers))
        self._starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).tolist()
        missing = len(texts) - counts.double()
        self._weights = torch.log1p((missing + 0.5) / (counts.double() + 0.5))
        whole = torch.zeros(len(texts), dtype=torch.float64)
        whole.index_add_(0, self._owners, self._weights.repeat_interleave(counts))
        self._whole = whole.clamp_min(torch.finfo(torch.float64).tiny)

    def scores(self, query: str) -> Float[Tensor, " n"]:
        """Return the share of each text that stands in a query, from 0 to 1."""
        found = torch.zeros_like(self._whole)
        known = (self._numbers.get(one) for one in character_sequences(query))
        for number in sorted(one for one in known if one is not None):
            owners = self._owners[self._starts[number] : self._starts[number + 1]]
            found[owners] += self._weights[number]  # a text has each sequence once
        return found / self._whole


class EmbeddingIndex(TextIndex):
    """Index by embeddings: cosine similarity.

    Args:
        encoder: Encodes texts; what it has encoded it does not encode again.
        texts: The texts.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self._vectors: Float[Tensor, "n d"] = encoder.encode(texts)

    def scores(self, query: str) -> Float[Tensor, " n"]:
        """Return the cosine similarity of each text with a query."""
        return self._vectors @ self._encoder.encode([query])[0]


@lru_cache(maxsize=1 << 16)
def character_sequences(text: str) -> tuple[str, ...]:
    """Return the character sequences of a text, each once, in alphabetical order.

    Case, width and punctuation do not count. A text without letters, digits and marks is one
    sequence.

    Args:
        text: Text in any script.

    Example:
        >>> character_sequences("Lyon, LYON")
        (' lyo', 'lyon', 'yon ')
        >>> character_sequences("北京是")
        ('京是', '北京')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(one if unicodedata.category(one)[0] in "LMN" else " " for one in folded)
    return tuple(sorted({one for word in kept.split() for one in _sequences(word)} or {folded}))


def _sequences(word: str) -> Iterator[str]:
    for joined, run in groupby(word, is_joined):
        part = "".join(run)
        padded, length = (part, _JOINED_LENGTH) if joined else (f" {part} ", _LENGTH)
        for start in range(max(1, len(padded) - length + 1)):
            yield padded[start : start + length]


def index_maker(encoder: str, model: nn.Module, tokenizer: Any) -> MakeIndex:
    """Return what makes the indexes of a retrieval.

    Args:
        encoder: ``lexical``: shared character sequences. ``hidden``: hidden states of the language
            model. Else a model of ``sentence-transformers``, by folder or name.
        model: The language model.
        tokenizer: Its fast tokenizer, or a prompt encoder.
    """
    if encoder == "lexical":
        return LexicalIndex
    if encoder == "hidden":
        return partial(EmbeddingIndex, HiddenStateEncoder(model, tokenizer))
    return partial(EmbeddingIndex, SentenceEncoder(encoder))
