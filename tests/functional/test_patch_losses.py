"""Losses of T-Patcher against the authors' own, and against the formula written out."""

from typing import Any

import pytest
import torch

from lightning_edit.functional.extra_neurons import pre_activations
from lightning_edit.functional.patch_losses import (
    MARGINS,
    activation_loss,
    mean_of_largest,
    memory_loss,
    smoothed_nll,
)
from tests.editors.golden import golden

SETS = ["fever", "zsre", "fever_nocopies", "zsre_nocopies"]
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SETS)
def test_losses_and_gradients_are_the_authors(name: str, dtype: str) -> None:
    example = golden(f"T_PATCHER/losses_{name}-{dtype}")
    stored, settings = example.tensors, example.meta["settings"]
    close: dict[str, Any] = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    keys, bias = (stored[one].clone().requires_grad_() for one in ("K", "b_p"))
    places = settings["act_loc"]
    listed = [places] if isinstance(places, int) else places
    hidden = stored["h"][:, listed]  # (rows, n, d): each neuron at its own position
    own = (hidden * keys).sum(-1) + bias
    # Copies of one row are counted instead of computed.
    copies = settings["copies_of_the_edit"]
    own = own[:1] if copies > 1 else own
    margins = MARGINS[settings["path"]]
    activation = activation_loss(own, margins.fire, 5, copies)
    silence = memory_loss(
        own, pre_activations(stored["memory.train"], keys, bias), margins, 1000, copies
    )
    torch.testing.assert_close(activation, stored["L_a"], **close)
    torch.testing.assert_close(silence, stored["L_m"], **close)
    held_out = pre_activations(stored["memory.val"], keys, bias)
    torch.testing.assert_close(
        memory_loss(own, held_out, margins, 1000, copies), stored["L_m.val"], **close
    )
    found = torch.autograd.grad(activation + settings["mlc"] * silence, [keys, bias])
    for one, name_ in zip(found, ("grad.K", "grad.b_p"), strict=True):
        torch.testing.assert_close(one, stored[name_], **close)
    if settings["path"] == "zsre":
        targets = stored["trg_input_ids"][:, 1:]
        real = targets != settings["pad_token_id"]
        each = smoothed_nll(stored["logits"][real], targets[real], 0.1)
        loss = each.sum() / stored["trg_attention_mask"][:, 1:].sum()
        torch.testing.assert_close(loss, stored["L_e"], **close)
        total = loss + activation + settings["mlc"] * silence
        torch.testing.assert_close(total, stored["total"], **close)


@pytest.mark.parametrize(("count", "copies"), [(5, 8), (1000, 8), (7, 3), (6, 3), (1, 1), (9, 1)])
def test_copies_are_counted_as_if_they_were_there(count: int, copies: int) -> None:
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    repeated = values.flatten().repeat(copies)
    expected = repeated.topk(min(count, len(repeated))).values.mean()
    torch.testing.assert_close(mean_of_largest(values, count, copies), expected)
