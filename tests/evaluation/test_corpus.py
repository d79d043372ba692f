"""Texts that stay the same: scores against unbatched ones, texts that depend on nothing else."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_edit.atlas.held_out import held_out_texts
from lightning_edit.atlas.text import corpus
from lightning_edit.evaluation.corpus import GumbelTopK, TextReader, fixed_texts
from lightning_edit.exceptions import ArchitectureError, DataError
from tests.models.tiny import build_tiny, build_tokenizer
from tests.toy import toy_model, toy_tokenizer

TEXTS = ["the capital of land1 is city2 .", "land3", "what is city4 ?", "city5 is the land6 of"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_each_text_alone(batch_size: int, dtype: torch.dtype) -> None:
    model, tokenizer = toy_model(dtype), toy_tokenizer()
    found = TextReader(model, tokenizer, batch_size).nlls(TEXTS)
    for text, (nll, tokens) in zip(TEXTS, found, strict=True):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        wanted = 0.0
        for place, token in enumerate(ids[1:]):
            scores = logits[place].tolist()
            wanted += math.log(sum(math.exp(s) for s in scores)) - scores[token]
        assert tokens == len(ids) - 1
        assert nll == pytest.approx(wanted, rel=1e-5 if dtype == torch.float32 else 2e-2, abs=1e-4)


def test_hidden_states_and_continuations_do_not_depend_on_the_batch() -> None:
    model, tokenizer = toy_model(), toy_tokenizer()
    numbers = range(len(TEXTS))
    one, many = (TextReader(model, tokenizer, size) for size in (1, 4))
    torch.testing.assert_close(one.hidden(TEXTS), many.hidden(TEXTS), rtol=1e-4, atol=1e-5)
    assert one.hidden(TEXTS).shape == (4, 2, 16)
    written = many.continuations(TEXTS, numbers, 8)
    assert one.continuations(TEXTS, numbers, 8) == written
    # A share of the prompts, as on a second process.
    assert many.continuations(TEXTS[1::2], [1, 3], 8) == written[1::2]
    assert many.continuations(TEXTS, numbers, 8, seed=1) != written
    state = torch.random.get_rng_state()
    many.continuations(TEXTS, numbers, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_texts_longer_than_the_model_are_cut() -> None:
    reader = TextReader(toy_model(), toy_tokenizer(), max_tokens=1000)
    ((_, tokens),) = reader.nlls(["the land of " * 40])
    assert tokens == 31  # 32 positions, and the first token is not predicted
    assert reader.continuations(["the land of " * 40], [0], 500)


def test_noise_samples_the_distribution_of_the_best() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    noise = GumbelTopK(3, ["seed"])
    ids = torch.zeros(1, 1, dtype=torch.long)
    counts = Counter(int(noise(ids, scores).argmax()) for _ in range(4000))
    weights = [math.exp(score) for score in (2.0, 1.0, 0.0)]
    assert counts[3] == 0
    for token, weight in enumerate(weights):
        assert counts[token] / 4000 == pytest.approx(weight / sum(weights), abs=0.03)


def test_default_texts_were_not_trained_on() -> None:
    trained = set(corpus())
    texts = held_out_texts(50)
    assert len(texts) == 50
    assert not any(sentence in text for text in texts[:10] for sentence in trained)
    assert fixed_texts(None, 50) == tuple(texts)


def test_texts_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\nthree\n")
    assert fixed_texts(str(path), 2) == ("one", "two")
    assert fixed_texts(["a"], 5) == ("a",)
    path.write_text("\n")
    with pytest.raises(DataError, match="no text in"):
        fixed_texts(str(path), 2)
    with pytest.raises(DataError, match=r"absent\.txt"):
        fixed_texts(str(tmp_path / "absent.txt"), 2)


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="decoder-only"):
        TextReader(build_tiny("t5"), build_tokenizer())
