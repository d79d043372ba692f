"""Per-sample gradients equal those of autograd, one sample at a time, in float64 or near it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_edit.analysis.training_data.encoding import LossRows
from lightning_edit.analysis.training_data.gradients import (
    FactoredGradients,
    ProjectedGradients,
    Projection,
    sample_gradients,
)
from lightning_edit.analysis.training_data.subset import subset_modules
from lightning_edit.exceptions import ConfigError
from lightning_edit.inference.answer_rows import AnswerRows
from lightning_edit.inference.answers import answer_logits
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight
from tests.models.tiny import TINY, VOCAB

FAMILIES = ["gpt2", "llama", "qwen3", "opt", "t5"]
DOUBLE = ["gpt2", "opt"]  # norms of the others compute in float32, whatever the model's dtype


def close(found: torch.Tensor, wanted: torch.Tensor, family: str) -> None:
    if family in DOUBLE:
        torch.testing.assert_close(found, wanted)
    else:
        atol = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol)


def samples() -> list[LossRows]:
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(4, VOCAB, (count,), generator=generator).tolist()

    contrast = LossRows(((some(5), some(1)), (some(5), some(3))), (1.0, -1.0))
    return [LossRows(((some(3), some(4)),)), contrast, LossRows(((some(1), some(9)),))]


def one_by_one(model: Any, rows: Sequence[LossRows], modules: Sequence[str]) -> torch.Tensor:
    """Gradients by autograd, flat, in the orientation (d_out, d_in); one a sample."""
    weights = [weight(model, f"{name}.weight") for name in modules]
    found = []
    for sample in rows:
        loss = torch.zeros((), dtype=torch.float64)
        for row, sign in zip(sample.rows, sample.signs, strict=True):
            batch = AnswerRows.of(model, [row])
            logits = answer_logits(model, batch)
            loss = loss + sign * torch.nn.functional.cross_entropy(logits, batch.targets)
        gradients = torch.autograd.grad(loss, [one.raw() for one in weights])
        turned = [g.mT if w.transposed else g for g, w in zip(gradients, weights, strict=True)]
        found.append(torch.cat([one.flatten() for one in turned]))
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_those_of_autograd(family: str) -> None:
    model = TINY[family]().double()
    rows, modules = samples(), subset_modules(resolve(model), ["all"])
    expected = one_by_one(model, rows, modules)
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    found = sample_gradients(model, rows, modules, 2)
    assert isinstance(found, FactoredGradients)
    close(found.products(found), expected @ expected.mT, family)
    close(found.norms(), expected.norm(dim=1), family)
    dense = [
        torch.stack([(d[of == n].mT @ u[of == n]).flatten() for n in range(3)])
        for u, d, of in found.factors.values()
    ]
    close(torch.cat(dense, 1), expected, family)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_a_projection_is_that_of_the_gradients() -> None:
    model = TINY["qwen3"]().double()
    rows, modules = samples(), subset_modules(resolve(model), ["mlp_down"], [1])
    projection = Projection(8, seed=3)
    found = sample_gradients(model, rows, modules, 2, projection)
    assert isinstance(found, ProjectedGradients)
    (name,) = modules
    whole = one_by_one(model, rows, modules).view(3, *weight(model, f"{name}.weight").shape)
    left = projection.side(f"{name}/out", torch.eye(whole.shape[1], dtype=torch.float64)[None])[0]
    right = projection.side(f"{name}/in", torch.eye(whole.shape[2], dtype=torch.float64)[None])[0]
    expected = torch.einsum("op,noi,iq->npq", left, whole, right).flatten(1)
    close(found.values, expected, "qwen3")
    assert found.values.shape == (3, 64)
    # Another seed is another projection; one that is wide enough changes nothing.
    other = sample_gradients(model, rows, modules, 2, Projection(8, seed=4))
    assert not torch.allclose(other.products(other), found.products(found))
    wide = sample_gradients(model, rows, modules, 2, Projection(999, seed=3))
    exact = sample_gradients(model, rows, modules, 2)
    torch.testing.assert_close(wide.products(wide), exact.products(exact))


def test_half_precision_neither_overflows_nor_is_stored() -> None:
    model = TINY["llama"]().to(torch.bfloat16)
    rows, modules = samples(), subset_modules(resolve(model), ["mlp_down"])
    found = sample_gradients(model, rows, modules, 3)
    assert {one.dtype for one in found.tensors().values()} == {torch.float32, torch.int64}
    exact = sample_gradients(TINY["llama"]().double(), rows, modules, 3)
    scale = exact.norms()[:, None] * exact.norms()[None, :]
    assert ((found.products(found) - exact.products(exact)) / scale).abs().max() < 0.2


def test_projected_products_are_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, 4, 40, generator=generator, dtype=torch.float64)
    d = torch.randn(3, 4, 30, generator=generator, dtype=torch.float64)
    d[1] += 0.5 * d[0]
    exact = torch.einsum("bto,bti->boi", d, u).flatten(1)
    drawn = []
    for seed in range(300):
        one = Projection(8, seed)
        projected = torch.einsum("bto,bti->boi", one.side("m/out", d), one.side("m/in", u))
        drawn.append(projected.flatten(1) @ projected.flatten(1).mT)
    scale = exact.norm(dim=1)[:, None] * exact.norm(dim=1)[None, :]
    errors = torch.stack(drawn) - exact @ exact.mT
    assert (errors.mean(0) / scale).abs().max() < 0.1
    # One draw is off by much more than the mean of all.
    assert (errors[0] / scale).abs().max() > 0.1


def test_roles_patterns_and_layers_choose_linear_layers() -> None:
    view = resolve(TINY["llama"]())
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    assert subset_modules(view, ["mlp_down"]) == down
    assert subset_modules(view, ["mlp_down"], [2, 0]) == [down[0], down[2]]
    assert subset_modules(view, ["*.q_proj"], [1]) == ["model.layers.1.self_attn.q_proj"]
    assert len(subset_modules(view, ["attention"])) == 12
    assert len(subset_modules(view, ["mlp", "attention"])) == len(subset_modules(view, ["all"]))
    stacks = subset_modules(resolve(TINY["t5"]()), ["mlp_down"])
    assert [name.partition(".")[0] for name in stacks] == ["encoder"] * 3 + ["decoder"] * 2


@pytest.mark.parametrize(
    ("subset", "layers", "said"),
    [
        (["lora"], None, "the parameter subset 'lora' has no linear layer.*mlp_down"),
        (["*.gate"], None, "no linear layer of this model"),
        ([], None, "expected a parameter subset, got none"),
        (["mlp"], [3], "expected layers from 0 to 2, got 3"),
    ],
)
def test_what_chooses_nothing_is_refused(
    subset: list[str], layers: list[int] | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        subset_modules(resolve(TINY["llama"]()), subset, layers)
