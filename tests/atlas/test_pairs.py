"""Batches for two stacks: the prompt goes to the encoder, the answer to the decoder."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_edit.atlas.architectures import build_t5
from lightning_edit.atlas.packing import Encoded, encode_sentences
from lightning_edit.atlas.pairs import LEAD_PROBABILITY, PairBatches
from lightning_edit.atlas.text import Sentence
from lightning_edit.atlas.tokenizer import train_tokenizer
from lightning_edit.models.prompt_encoder import PromptEncoder

TEXT = [
    Sentence("The capital of France is", "Paris"),
    Sentence("Oslo is the capital of", "Norway"),
    Sentence("What is the river of Arles?", "the Rhône"),
    Sentence("東京 is the capital of", "Japan"),
    Sentence("Lyon is a", "city"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [sentence.text for sentence in TEXT]
    return train_tokenizer(texts, vocab_size=300, max_length=64, two_stacks=True)


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    return encode_sentences(tokenizer, TEXT)


def batches(encoded: list[Encoded], seed: int = 0, size: int = 2) -> PairBatches:
    return PairBatches(encoded, start_id=0, end_id=1, batch_size=size, seed=seed)


def test_the_tokenizer_has_the_special_tokens_of_t5(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.bos_token is None
    ids = tokenizer("Oslo is")["input_ids"]
    assert ids[-1] == 1
    assert 1 not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Oslo is"


def test_a_pair_is_what_an_edited_model_is_asked(
    tokenizer: PreTrainedTokenizerFast, encoded: list[Encoded]
) -> None:
    """Training and inference tokenise alike; what is trained behind the answer is stop and EOS."""
    sizes = {"hidden_size": 8, "layers": 1, "decoder_layers": 1, "intermediate_size": 8, "heads": 2}
    asked = PromptEncoder.for_model(build_t5(tokenizer, **sizes), tokenizer)
    assert asked.two_stacks
    expected = {tuple(prompt): tuple(answer) for prompt, answer in asked.pairs(
        (sentence.prompt, sentence.answer) for sentence in TEXT
    )}  # fmt: skip
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    alone = 0
    for ids, weights, prompts, mask in islice(batches(encoded), 30):
        for row, weight, prompt, seen in zip(ids, weights, prompts, mask, strict=True):
            answer = row[weight == 1.0].tolist()
            assert row[0].item() == 0
            assert weight[0].item() == 0.0
            assert answer[-1] == 1
            read = tuple(prompt[seen == 1].tolist())
            if read in expected:
                alone += 1
                assert (*expected[read], stop, 1) == tuple(answer)
    assert alone > 30


def test_an_epoch_asks_every_sentence_once(
    tokenizer: PreTrainedTokenizerFast, encoded: list[Encoded]
) -> None:
    epoch = list(islice(batches(encoded), 3))
    assert [len(ids) for ids, *_ in epoch].count(1) == 1  # five sentences in batches of two
    asked = Counter(
        tokenizer.decode(row[1:], skip_special_tokens=True).strip() for b in epoch for row in b[0]
    )
    assert asked == Counter(f"{sentence.answer}." for sentence in TEXT)


def test_the_seed_decides_the_order_and_what_stands_before_a_prompt(
    encoded: list[Encoded],
) -> None:
    def first(seed: int) -> list[tuple[Tensor, ...]]:
        return list(islice(batches(encoded, seed), 12))

    def equal(one: list[tuple[Tensor, ...]], other: list[tuple[Tensor, ...]]) -> bool:
        pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
        return all(torch.equal(a, b) for a, b in pairs)

    assert equal(first(0), first(0))
    assert not equal(first(0), first(1))


def test_some_prompts_follow_another_sentence(
    tokenizer: PreTrainedTokenizerFast, encoded: list[Encoded]
) -> None:
    prompts = {sentence.prompt for sentence in TEXT}
    leads = {sentence.text for sentence in TEXT}
    seen: Counter[bool] = Counter()
    for _, _, ids, mask in islice(batches(encoded, size=5), 400):
        assert torch.equal(mask.sum(1), (ids != 0).sum(1))
        for row in ids:
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            seen[text in prompts] += 1
            if text not in prompts:
                lead, _, prompt = text.partition(". ")
                assert f"{lead}." in leads
                assert prompt in prompts
    assert seen[False] / seen.total() == pytest.approx(LEAD_PROBABILITY, abs=0.03)
