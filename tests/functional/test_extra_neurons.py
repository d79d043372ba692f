"""Forward formulas of T-Patcher's patch and CaliNET's block against the authors' classes."""

import pytest
import torch
from torch.nn.functional import gelu, linear, relu

from lightning_edit.functional.extra_neurons import calibration_output, initial_keys, patch_output
from tests.editors.golden import golden

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_patch_is_the_authors(dtype: str) -> None:
    stored = golden(f"T_PATCHER/ffn-{dtype}").tensors
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(initial_keys(stored["init_hidden"]), stored["init_key"], **close)
    values = stored["V_raw"] * stored["a"]
    for name, activation in (("gelu", gelu), ("relu", relu)):
        hidden = activation(linear(stored["h"], stored["W1"], stored["b1"]))
        own = linear(hidden, stored["W2"], stored["b2"])
        added = patch_output(stored["h"], stored["K"], stored["b_p"], values, activation)
        torch.testing.assert_close(own + added, stored[f"out_{name}"], **close)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_a_calibration_block_is_the_authors(kind: str, dtype: str) -> None:
    stored = golden(f"CALINET/ffn_{kind}-{dtype}").tensors
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    first = "wi" if kind == "relu" else "wi_1"
    names = [first, "wo", *(["wi_0"] if kind == "gated" else [])]
    weights = [stored[f"param.{name}_ex.weight"].clone().requires_grad_() for name in names]
    added = calibration_output(stored["normed"], *weights)
    torch.testing.assert_close(added, stored["extra_out"], **close)
    output = stored["x"] + stored["ffn_out"] + added
    torch.testing.assert_close(output, stored["layer_out"], **close)
    gradients = torch.autograd.grad(output.square().sum(), weights)
    for name, gradient in zip(names, gradients, strict=True):
        theirs = stored[f"grad.{name}_ex.weight"]
        assert (gradient - theirs).norm() <= 10 * TOLERANCE[dtype] * theirs.norm()
