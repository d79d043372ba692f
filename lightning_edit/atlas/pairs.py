"""Prompts for an encoder and answers for a decoder: batches of training pairs of the atlas.

Axis names: ``b`` -- pairs; ``t`` -- decoder positions; ``s`` -- encoder positions.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_edit.atlas.packing import PROMPT_WEIGHT, Encoded

#: Probability that another sentence of the text stands before a prompt.
LEAD_PROBABILITY = 0.2
#: Batches among which pairs are sorted by length, so that a batch has little padding.
POOL = 16

#: Token ids of the encoder (with EOS), and of the decoder (start token, answer, EOS).
Pair = tuple[list[int], list[int]]


class PairBatches(IterableDataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Infinite dataset of batches of prompts and answers, padded on the right.

    A batch is ``(ids, weights, prompt_ids, prompt_mask)``: the decoder's tokens (b, t) from the
    start token to EOS and their loss weights, 1 for answer and EOS; and what the encoder reads
    (b, s). Every epoch reshuffles the sentences. Some prompts follow another sentence.

    Args:
        sentences: Tokenised sentences of :func:`lightning_edit.atlas.packing.encode_sentences`.
        start_id: The token that the decoder starts with, also the padding.
        end_id: The EOS token.
        batch_size: Pairs per batch.
        seed: Seed of the order and of the sentences before prompts.
    """

    def __init__(
        self, sentences: Sequence[Encoded], start_id: int, end_id: int, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.sentences = sentences
        self.start_id = start_id
        self.end_id = end_id
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield batches without end; the Trainer's ``max_steps`` limits training."""
        generator = torch.Generator().manual_seed(self.seed)
        size = self.batch_size
        while True:
            order = torch.randperm(len(self.sentences), generator=generator).tolist()
            for start in range(0, len(order), size * POOL):
                drawn = order[start : start + size * POOL]
                pool = [self._pair(index, generator) for index in drawn]
                pool.sort(key=lambda pair: (len(pair[0]), len(pair[1])))
                batches = [pool[begin : begin + size] for begin in range(0, len(pool), size)]
                for number in torch.randperm(len(batches), generator=generator).tolist():
                    yield self._batch(batches[number])

    def _pair(self, index: int, generator: torch.Generator) -> Pair:
        """Return one sentence as prompt and answer, perhaps behind another sentence."""
        ids, weights = self.sentences[index]
        asked = ids[: weights.count(PROMPT_WEIGHT)]
        lead: list[int] = []
        if torch.rand((), generator=generator).item() < LEAD_PROBABILITY:
            other = torch.randint(len(self.sentences), (), generator=generator)
            lead = self.sentences[int(other)][0]
        return [*lead, *asked, self.end_id], [self.start_id, *ids[len(asked) :], self.end_id]

    def _batch(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prompts, prompt_mask = self._pad([prompt for prompt, _ in pairs])
        ids, mask = self._pad([answer for _, answer in pairs])
        weights = mask.float()
        weights[:, 0] = 0.0  # nothing predicts the start token
        return ids, weights, prompts, prompt_mask

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.start_id] * (width - len(row))] for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        return ids, (torch.arange(width) < lengths).long()
