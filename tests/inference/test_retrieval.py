"""Retrieval: what is found near a text, in any script, and that it depends on nothing else."""

import sys
from typing import Any

import pytest
import torch

from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.hidden_states import read_last
from lightning_edit.inference.retrieval import (
    EmbeddingIndex,
    LexicalIndex,
    character_sequences,
    index_maker,
)
from lightning_edit.inference.text_encoders import HiddenStateEncoder, SentenceEncoder
from lightning_edit.inference.tokenized_text import TokenizedText
from lightning_edit.models.view import resolve
from tests.models.tiny import build_tiny, build_tokenizer

FACTS = [
    "The mother tongue of Danielle Darrieux is",
    "The capital of France is",
    "东京是哪个国家的首都",
    "Столица Франции —",
    "เมืองหลวงของฝรั่งเศสคือ",
    "पेरिस किस देश की राजधानी है",
]


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ("Shelby served two terms. Danielle Darrieux, speaker of", 0),
        ("Which city is France's capital?", 1),
        ("首都东京在哪里", 2),
        ("во Франции столицей является", 3),
        ("เมืองหลวงของประเทศฝรั่งเศส", 4),
        ("राजधानी पेरिस", 5),
    ],
)
def test_shared_characters_find_the_fact_in_its_script(query: str, place: int) -> None:
    first = LexicalIndex(FACTS).nearest(query, 1)[0]
    assert first.place == place
    assert first.score > 0.1


def test_a_score_is_the_weighted_share_of_a_text_that_stands_in_the_query() -> None:
    index = LexicalIndex(["Lyon", "Lyon Paris", "Rome"])
    scores = index.scores("where is Lyon")
    assert scores[0] == pytest.approx(1.0)
    assert scores[2] == 0.0
    # "lyon" and its edges stand in two texts of three, "paris" in one.
    common = torch.log1p(torch.tensor(1.5 / 2.5, dtype=torch.float64))
    rare = torch.log1p(torch.tensor(2.5 / 1.5, dtype=torch.float64))
    lyon, paris = (len(character_sequences(name)) for name in ("Lyon", "Paris"))
    assert float(scores[1]) == pytest.approx(
        float(lyon * common / (lyon * common + paris * rare)), abs=1e-12
    )


def test_ties_are_broken_by_place_and_k_may_be_larger_than_the_index() -> None:
    index = LexicalIndex(["Lyon", "Rome", "Lyon", "Lyon"])
    assert [hit.place for hit in index.nearest("Lyon", 9)] == [0, 2, 3, 1]
    assert [hit.place for hit in index.nearest("Lyon", 2, newest_first=True)] == [3, 2]
    assert [hit.place for hit in LexicalIndex(["?!", "..."]).nearest("?!", 1)] == [0]


def encoder(family: str, block: int | None = None) -> HiddenStateEncoder:
    return HiddenStateEncoder(build_tiny(family), build_tokenizer(bos=True), block)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_text_has_the_same_embedding_in_any_company(family: str) -> None:
    own = encoder(family)
    texts = ["The capital of France is", "Lyon", "Marseille lies in France"]
    together = own.encode(texts)
    assert together.dtype == torch.float64
    assert torch.allclose(together.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    for text, vector in zip(texts, together, strict=True):
        assert torch.equal(encoder(family).encode([text])[0], vector)
    index = EmbeddingIndex(own, texts)
    assert [index.nearest(text, 1)[0].place for text in texts] == [0, 1, 2]
    assert index.nearest(texts[1], 1)[0].score == pytest.approx(1.0)
    assert not any(module._forward_hooks for module in own._view.model.modules())


def test_an_embedding_is_the_mean_of_the_block_at_each_token() -> None:
    model, tokenizer = build_tiny("gpt2"), build_tokenizer()
    view = resolve(model)
    ids = tokenizer("Lyon lies in France")["input_ids"]
    texts = [TokenizedText(0, tuple(ids[:end]), 0) for end in range(1, len(ids) + 1)]
    name = view.block(2).name
    states = read_last(view, texts, {name: "output"}, 4)[name]
    expected = (states / states.norm(dim=-1, keepdim=True)).mean(0)
    found = HiddenStateEncoder(model, tokenizer, 2).encode(["Lyon lies in France"])[0]
    assert torch.allclose(found, expected / expected.norm(), atol=1e-6)


def test_a_text_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, read = encoder("gpt2"), []
    one = own._encode_one
    monkeypatch.setattr(own, "_encode_one", lambda m, text: read.append(text) or one(m, text))
    own.encode(["Lyon", "Paris", "Lyon"])
    own.encode(["Paris", "Rome"])
    assert read == ["Lyon", "Paris", "Rome"]


def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 2; got 3"):
        encoder("gpt2", 3)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    make: Any = index_maker("all-MiniLM-L6-v2", build_tiny("gpt2"), build_tokenizer())
    with pytest.raises(ConfigError, match=r"pip install .*retrieval.*or take the encoder"):
        make(["a text"])


def test_a_sentence_encoder_that_is_not_there_is_named() -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `retrieval` is not installed")
    with pytest.raises(ConfigError, match="no-such-folder"):
        SentenceEncoder("/no-such-folder").encode(["a text"])
