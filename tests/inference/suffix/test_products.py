"""Products of a search equal the model's own, on every kind of layer, and leave the model alone."""

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from lightning_edit.inference.onednn import is_plain
from lightning_edit.inference.suffix.products import PASSES_BEFORE, Products
from lightning_edit.models.view import resolve
from tests.models.tiny import TINY

FAMILIES = ["gpt2", "llama", "opt", "gemma2"]


def outputs(model: nn.Module, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, and the gradient of one of them for what goes in."""
    given = embedded.clone().requires_grad_()
    logits = model(inputs_embeds=given, use_cache=False).logits
    return logits.detach(), torch.autograd.grad(logits[0, -1, 3], given)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_model(family: str) -> None:
    view = resolve(TINY[family]().eval().requires_grad_(False))
    embedded = view.embeddings(torch.tensor([[5, 9, 4, 7], [8, 3, 6, 2]])).detach()
    wanted = outputs(view.model, embedded)
    products = Products(view, 0)
    assert any(one.module is view.head for one in products.layers)
    for number in range(PASSES_BEFORE + 2):  # the last ones are packed
        with products.used(8):
            found = outputs(view.model, embedded)
        assert all(one.packed for one in products.layers) == (number >= PASSES_BEFORE)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # Afterwards the model is itself again, to the bit.
    assert not any("forward" in one.__dict__ for one in view.model.modules())
    for one, other in zip(outputs(view.model, embedded), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_activations_written_out_are_one_operator() -> None:
    view = resolve(TINY["gpt2"]())
    products = Products(view, view.num_blocks - 1)
    (activation,) = (one for one in products.replaced if isinstance(one, NewGELUActivation))
    given = torch.linspace(-9, 9, 181, dtype=torch.float64)
    torch.testing.assert_close(products.replaced[activation](given), activation(given))


def test_a_long_pass_packs_nothing() -> None:
    products = Products(resolve(TINY["llama"]()), 1)
    for _ in range(PASSES_BEFORE + 1):
        with products.used(1000):
            pass
    assert not any(one.packed for one in products.layers)


def test_only_ordinary_float32_layers_on_a_cpu_are_replaced() -> None:
    class Own(nn.Linear):
        """A layer that may do more than a product, as an adapter does."""

    wrapped = nn.Linear(2, 2)
    wrapped.__dict__["forward"] = lambda hidden: hidden
    others = [Own(2, 2), nn.Linear(2, 2).half(), nn.Linear(2, 2, device="meta"), wrapped]
    assert not any(map(is_plain, [*others, nn.Embedding(2, 2)]))
    assert is_plain(nn.Linear(2, 2, bias=False))
    assert is_plain(Conv1D(3, 2))


def test_under_autocast_layers_run_as_they_are() -> None:
    view = resolve(TINY["llama"]().eval().requires_grad_(False))
    embedded = view.embeddings(torch.tensor([[5, 9, 4, 7]])).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = view.model(inputs_embeds=embedded, use_cache=False).logits
        with Products(view, 0).used(4):
            found = view.model(inputs_embeds=embedded, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
