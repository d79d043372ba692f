from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_edit.exceptions import DataError, StatisticsNotFoundError
from lightning_edit.models.weights import weights_hash
from lightning_edit.statistics.cache import (
    files_for,
    find,
    moments_for,
    names_in_cache,
    store,
)
from lightning_edit.statistics.collect import collect
from lightning_edit.statistics.moments import Moments
from tests.models.tiny import CORPUS, TINY, build_tokenizer

#: Two texts.
TEXTS = (CORPUS, CORPUS[::-1])


def test_statistics_are_found_by_the_model_they_belong_to() -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    small = collect(model, tokenizer, CORPUS, [0, 1], max_tokens=20)
    large = collect(model, tokenizer, CORPUS, [1])
    store(small)
    store(large)
    name = "transformer.h.{}.mlp.c_proj"
    found = moments_for(model, tokenizer, [0, 1], "auto")  # of one text for both
    torch.testing.assert_close(found[1], small.matrices[name.format(1)])
    torch.testing.assert_close(found[0], small.matrices[name.format(0)])
    found = moments_for(model, tokenizer, [1], "auto")
    torch.testing.assert_close(found[1], large.matrices[name.format(1)])
    nn.init.zeros_(model.get_parameter("transformer.h.2.mlp.c_proj.weight"))
    assert find(weights_hash(model), [name.format(0)]) == {name.format(0): None}
    with pytest.raises(StatisticsNotFoundError, match=r"lightning-edit stats --lm .*identity"):
        moments_for(model, tokenizer, [0], "auto")


def test_texts_with_equally_many_tokens_are_never_mixed(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    both = [collect(model, tokenizer, texts, [0, 1], max_tokens=20) for texts in TEXTS]
    for order in (both, both[::-1]):
        for moments in order:
            store(moments)
        files = files_for(model, tokenizer, [0, 1], "auto")
        corpus = min(moments.corpus for moments in both)
        assert all(corpus[:12] in path.name for path in files.values())
    assert "2 key statistics have 20 tokens each" in caplog.text
    assert len(names_in_cache(model, tokenizer)) == 1


def test_layers_with_statistics_of_different_texts_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    for layer, texts in enumerate(TEXTS):
        store(collect(model, tokenizer, texts, [layer]))
    assert len(files_for(model, tokenizer, [0, 1], "auto")) == 2
    assert "has key statistics of all" in caplog.text


def test_identity_is_never_silent() -> None:
    model = TINY["gpt2"]()
    assert moments_for(model, build_tokenizer(), [0, 1], "identity") == {0: None, 1: None}
    with pytest.raises(StatisticsNotFoundError, match="no such file"):
        moments_for(model, build_tokenizer(), [0], "nowhere.safetensors")


def test_a_file_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    Moments({"a": torch.eye(2)}, 3, "m", "c").save(path)
    with pytest.raises(StatisticsNotFoundError, match=r"has statistics of a, not of b.*--layers"):
        Moments.load(path, ["b"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["moments.safetensors"]
    from safetensors.torch import save_file

    save_file({"a": torch.eye(2)}, str(path))
    with pytest.raises(DataError, match="lightning-edit stats"):
        Moments.load(path)


def test_a_tokenizer_that_adds_bos_has_statistics_of_its_own() -> None:
    model = TINY["gpt2"]()
    plain, with_bos = build_tokenizer(), build_tokenizer(bos=True)
    bare, begun = (collect(model, tokenizer, CORPUS, [1]) for tokenizer in (plain, with_bos))
    assert begun.specials == (1,)
    assert begun.tokens == bare.tokens + len(CORPUS)
    store(bare)
    with pytest.raises(StatisticsNotFoundError, match="--lm_bos true --text"):
        moments_for(model, with_bos, [1], "auto")
    store(begun)
    name = "transformer.h.1.mlp.c_proj"
    for tokenizer, moments in ((plain, bare), (with_bos, begun)):
        found = moments_for(model, tokenizer, [1], "auto")[1]
        torch.testing.assert_close(found, moments.matrices[name], rtol=0, atol=0)
