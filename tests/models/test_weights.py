"""A weight reads and writes the same values whatever layer, type or tie it has."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_edit.exceptions import ArchitectureError
from lightning_edit.inference.hooks import capture
from lightning_edit.models.view import resolve
from lightning_edit.models.weights import weight, weights_hash
from tests.models.tiny import CONFIGS, HIDDEN, INNER, batch_of, build_tiny

pytestmark = pytest.mark.bits


@pytest.mark.parametrize("family", CONFIGS)
def test_a_matrix_acts_as_output_times_input(family: str) -> None:
    """y = W k holds for what the layer really sees and returns, Linear or Conv1D."""
    model = build_tiny(family)
    view = resolve(model)
    name = view.down_projection(1)
    matrix = weight(model, view.parameter(1))
    assert matrix.shape == (HIDDEN, INNER)
    assert matrix.transposed == (tuple(matrix.raw().shape) == (INNER, HIDDEN))
    with torch.no_grad(), capture(model, {name: "both"}, stop=True) as found:
        model(**batch_of(model), use_cache=False)
    expected = found[f"{name}@input"].double() @ matrix.read().mT
    if f"{name}.bias" in dict(model.named_parameters()):
        expected = expected + weight(model, f"{name}.bias").read()
    torch.testing.assert_close(found[f"{name}@output"].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_write_then_restore_is_bit_exact(family: str, dtype: torch.dtype) -> None:
    model = build_tiny(family).to(dtype)
    matrix = weight(model, resolve(model).parameter(0))
    before, raw = weights_hash(model), matrix.raw()
    original = matrix.read()
    matrix.write(original + 0.5)
    assert matrix.raw() is raw
    assert weights_hash(model) != before
    torch.testing.assert_close(matrix.read(dtype), (original + 0.5).to(dtype), rtol=0, atol=0)
    matrix.write(original)
    assert weights_hash(model) == before
    assert (matrix.dtype, matrix.device.type) == (dtype, "cpu")


def test_reading_gives_a_copy() -> None:
    model = build_tiny("llama").double()
    matrix = weight(model, "model.layers.0.mlp.down_proj.weight")
    before = weights_hash(model)
    copied = matrix.read(torch.float64)
    assert not copied.requires_grad
    copied.zero_()
    assert weights_hash(model) == before


def test_biases_stay_one_dimensional() -> None:
    model = build_tiny("gpt2")
    bias = weight(model, "transformer.h.0.mlp.c_fc.bias")
    assert bias.shape == (INNER,)
    assert not bias.transposed
    bias.write(torch.arange(INNER))
    assert bias.raw()[7] == 7


def test_tied_weights_are_listed_and_written_together() -> None:
    model = build_tiny("gpt2")
    head = weight(model, "lm_head.weight")
    assert head.tied_to == ("transformer.wte.weight",)
    head.write(torch.zeros(head.shape))
    assert not weight(model, "transformer.wte.weight").read().any()
    assert weight(build_tiny("llama"), "lm_head.weight").tied_to == ()
    with torch.device("meta"):
        on_meta = build_tiny("gpt2")
    on_meta.tie_weights()  # transformers 5.0 leaves this out on the meta device
    assert weight(on_meta, "lm_head.weight").tied_to == ("transformer.wte.weight",)
    assert weight(on_meta, "transformer.h.0.mlp.c_fc.bias").tied_to == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(INNER, HIDDEN), r"shape \(32, 48\).*got \(48, 32\); give the value"),
        (torch.full((HIDDEN, INNER), float("nan")), "not finite in torch.float16; the weight was"),
        # Finite in float32, but beyond what float16 can hold.
        (torch.full((HIDDEN, INNER), 1e6), "load the model in a wider dtype"),
    ],
)
def test_bad_values_leave_the_weight_alone(value: Tensor, text: str) -> None:
    model = build_tiny("gpt2").half()
    before = weights_hash(model)
    with pytest.raises(ValueError, match=text):
        weight(model, "transformer.h.0.mlp.c_proj.weight").write(value)
    assert weights_hash(model) == before


def test_unknown_and_quantised_parameters_are_refused() -> None:
    model = build_tiny("gpt2")
    with pytest.raises(ArchitectureError, match=r"no parameter 'transformer\.h\.9.*doctor MODEL"):
        weight(model, "transformer.h.9.mlp.c_proj.weight")
    for dtype in (torch.int8, torch.float8_e4m3fn):
        packed = nn.Linear(4, 4)
        packed.weight = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
        with pytest.raises(ArchitectureError, match=r"quantised .*load the model unquantised"):
            weight(packed, "weight")


def test_hash_sees_bytes_names_and_types_but_not_order_or_gradients() -> None:
    model = build_tiny("llama")
    same = copy.deepcopy(model).requires_grad_(False)
    assert weights_hash(model) == weights_hash(same) != weights_hash(same.bfloat16())
    names = ["lm_head.weight", "model.norm.weight"]
    chosen = weights_hash(model, names)
    assert chosen == weights_hash(model, reversed(names)) != weights_hash(model)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nextafter(model.lm_head.weight[3, 3], torch.tensor(9.0))
    assert weights_hash(model, names) != chosen
    with pytest.raises(ArchitectureError, match="no parameter 'nope' to hash"):
        weights_hash(model, ["nope"])
