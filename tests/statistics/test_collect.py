from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.exceptions import NotFiniteError
from lightning_edit.inference.hooks import capture
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weights_hash
from lightning_edit.statistics.collect import collect
from lightning_edit.statistics.partial import PartialSums
from tests.models.tiny import CORPUS, TINY, build_tokenizer


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_one_pass_over_batches_equals_text_by_text(family: str) -> None:
    model, tokenizer = TINY[family]().requires_grad_(False), build_tokenizer(bos=True)
    found = collect(model, tokenizer, CORPUS, [0, 2], batch_tokens=40)
    for name in (resolve(model).down_projection(layer) for layer in (0, 2)):
        keys = []
        for text in CORPUS:
            with capture(model, {name: "input"}) as seen:
                model(**tokenizer(text, return_tensors="pt"))
            keys.append(seen[name][0])
        every = torch.cat(keys).double()
        assert found.tokens == len(every)
        torch.testing.assert_close(
            found.matrices[name], (every.mT @ every / len(every)).float(), rtol=1e-4, atol=1e-5
        )


def test_token_budget_is_kept_exactly() -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    assert collect(model, tokenizer, CORPUS, [1], max_tokens=17).tokens == 17


@pytest.mark.slow
def test_agrees_with_the_authors_covariance() -> None:
    from tests.editors import golden

    stored = golden.golden("covariance/tiny-gpt2")
    lines = (golden.shared_path("golden/requests") / "cov_text.txt").read_text().splitlines()
    texts = [lines[index] for index in stored.meta["sample_indices"]]
    model = golden.model("tiny-gpt2")
    found = collect(model, golden.tokenizer("tiny-gpt2"), texts, range(6), batch_tokens=16384)
    assert found.tokens == stored.meta["count.0"]
    for layer in range(6):
        ours = found.matrices[f"transformer.h.{layer}.mlp.c_proj"]
        assert golden.relative(ours, stored.tensors[f"mom2.{layer}"]) < 1e-5


def test_narrow_weights_are_run_in_float32() -> None:
    narrow = TINY["gpt2"]().to(torch.bfloat16)
    wide = TINY["gpt2"]()
    wide.load_state_dict(narrow.state_dict())
    tokenizer = build_tokenizer()
    found, expected = (collect(model, tokenizer, CORPUS, [2]) for model in (narrow, wide))
    name = "transformer.h.2.mlp.c_proj"
    torch.testing.assert_close(found.matrices[name], expected.matrices[name], rtol=0, atol=0)
    assert next(narrow.parameters()).dtype == torch.bfloat16
    # An editor looks for the statistics of the weights that it edits.
    assert found.model == weights_hash(narrow)
    assert found.model != expected.model


def test_a_model_in_training_is_read_without_its_dropout() -> None:
    model, tokenizer = TINY["gpt2"](), build_tokenizer()
    expected = collect(model.eval(), tokenizer, CORPUS, [1])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = collect(model.train(), tokenizer, CORPUS, [1])
    assert model.training
    name = "transformer.h.1.mlp.c_proj"
    assert torch.equal(found.matrices[name], expected.matrices[name])


def test_memory_does_not_grow_with_the_text() -> None:
    held, most = 0, 0

    class Text(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def stream() -> Iterator[str]:
        nonlocal held, most
        for number in range(3000):
            held += 1
            most = max(most, held)
            yield Text(f"{CORPUS[number % 5]} {number % 7}")

    collect(TINY["gpt2"](), build_tokenizer(), stream(), [0], batch_tokens=16384)
    assert most <= 2 * 512 + 2


@pytest.mark.parametrize("shrinkage", [None, "identity"])
def test_keys_that_overflow_are_no_statistics(shrinkage: Any, tmp_path: Path) -> None:
    """All weights are finite, but the second block's input is not; the first block's keys are."""
    model = TINY["llama"]().requires_grad_(False)
    model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    partial = PartialSums(tmp_path / "partial.safetensors", every=0.0)
    for layers in ([0, 2], [2]):
        with pytest.raises(NotFiniteError, match=r"of model\.layers\.2\.mlp\.down_proj are not"):
            collect(model, build_tokenizer(), CORPUS, layers, shrinkage=shrinkage, partial=partial)
    assert list(tmp_path.iterdir()) == []
    assert collect(model, build_tokenizer(), CORPUS, [0], shrinkage=shrinkage).tokens
