"""Sequence packing: tokenised sentences of the atlas in fixed-length rows, with loss weights."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from lightning_edit.atlas.text import Sentence

#: Probability that a text ends after a sentence; above 1/2, so greedy generation stops there.
END_PROBABILITY = 0.6
#: Loss weight of prompt tokens (1 for answer and stop): names in prompts cannot be predicted.
PROMPT_WEIGHT = 0.25

Encoded = tuple[list[int], list[float]]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence]
) -> list[Encoded]:
    """Tokenise sentences without BOS; return token ids and loss weights of each."""
    encoded = tokenizer(
        [sentence.text for sentence in sentences],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    rows: list[Encoded] = []
    for sentence, ids, offsets in zip(
        sentences, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        begin = len(sentence.prompt)
        rows.append((ids, [1.0 if end > begin else PROMPT_WEIGHT for _, end in offsets]))
    return rows


class PackedRows(IterableDataset[tuple[Tensor, Tensor]]):
    """Infinite dataset of packed rows ``(input_ids, weights)`` of ``length`` tokens each.

    Every epoch reshuffles the sentences. End-of-text tokens separate texts of one or more
    sentences, so the model sees a fact both alone and after other sentences. Each row starts a new
    text.

    Args:
        sentences: Tokenised sentences of :func:`encode_sentences`.
        end_id: The end-of-text token.
        length: Tokens per row.
        seed: Seed of the sentence order and text lengths.

    Raises:
        ValueError: If a sentence does not fit into a row.
    """

    def __init__(self, sentences: Sequence[Encoded], end_id: int, length: int, seed: int) -> None:
        super().__init__()
        longest = max(len(ids) for ids, _ in sentences) + 2  # with BOS and end of text
        if longest > length:
            raise ValueError(
                f"rows must hold the longest sentence, {longest} tokens; got length={length}; "
                "raise the length, or the size of the vocabulary"
            )
        self.sentences = sentences
        self.end_id = end_id
        self.length = length
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield packed rows without end; the Trainer's ``max_steps`` limits training."""
        generator = torch.Generator().manual_seed(self.seed)
        ids, weights = self._new_row()
        while True:
            for index in torch.randperm(len(self.sentences), generator=generator).tolist():
                more, their_weights = self.sentences[index]
                if len(ids) + len(more) + 1 > self.length:
                    yield self._pad(ids, weights)
                    ids, weights = self._new_row()
                ids += more
                weights += their_weights
                if torch.rand((), generator=generator).item() < END_PROBABILITY:
                    ids.append(self.end_id)
                    weights.append(1.0)

    def _new_row(self) -> Encoded:
        return [self.end_id], [0.0]

    def _pad(self, ids: list[int], weights: list[float]) -> tuple[Tensor, Tensor]:
        missing = self.length - len(ids)
        return (
            torch.tensor(ids + [self.end_id] * missing),
            torch.tensor(weights + [0.0] * missing),
        )
