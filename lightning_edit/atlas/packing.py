"""Tokenised sentences of the atlas, packed into rows, with a weight for each token."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from lightning_edit.atlas.text import Sentence

#: Probability that a text ends after a sentence; above 1/2, so that greedy generation stops there.
END_PROBABILITY = 0.6
#: Weight of prompt tokens in the loss; answers and the stop weigh 1. Names cannot be predicted.
PROMPT_WEIGHT = 0.25

Encoded = tuple[list[int], list[float]]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence]
) -> list[Encoded]:
    """Return the ids of each sentence without BOS, and the weight of each id in the loss."""
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
    """Endless rows ``(input_ids, weights)`` of ``length`` tokens.

    Every pass over the sentences is shuffled anew. Texts of one or more sentences stand between
    end-of-text tokens, so a fact is seen both alone and after other sentences. Each row begins a
    text.

    Args:
        sentences: What :func:`encode_sentences` returned.
        end_id: The end-of-text token.
        length: Tokens in a row.
        seed: Order of the sentences and length of the texts.

    Raises:
        ValueError: If a sentence does not fit into a row.
    """

    def __init__(self, sentences: Sequence[Encoded], end_id: int, length: int, seed: int) -> None:
        super().__init__()
        longest = max(len(ids) for ids, _ in sentences) + 2  # with the text's begin and end
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
        """Yield rows for ever; the training loop counts the steps."""
        generator = torch.Generator().manual_seed(self.seed)
        ids, weights = self._begin()
        while True:
            for index in torch.randperm(len(self.sentences), generator=generator).tolist():
                more, their_weights = self.sentences[index]
                if len(ids) + len(more) + 1 > self.length:
                    yield self._padded(ids, weights)
                    ids, weights = self._begin()
                ids += more
                weights += their_weights
                if torch.rand((), generator=generator).item() < END_PROBABILITY:
                    ids.append(self.end_id)
                    weights.append(1.0)

    def _begin(self) -> Encoded:
        return [self.end_id], [0.0]

    def _padded(self, ids: list[int], weights: list[float]) -> tuple[Tensor, Tensor]:
        missing = self.length - len(ids)
        return (
            torch.tensor(ids + [self.end_id] * missing),
            torch.tensor(weights + [0.0] * missing),
        )
