"""MEND: parity with EasyEdit's numbers, and what an edit is."""

import copy
import json
import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.functional.hypernet import GradientTransform, informative_rows
from lightning_edit.inference.hooks import capture
from lightning_edit.inference.token_factors import token_factors
from lightning_edit.models.weights import weights_hash
from tests.conftest import shared_path
from tests.editors.hypernetwork.mending import LAST, distance, golden_requests


def golden_mend(gpt2: tuple[Any, Any], state: dict[str, torch.Tensor], modules: list[str]) -> MEND:
    """Build our editor with the parameters that EasyEdit trained."""
    editor = MEND(rank=128, modules=modules)
    editor.bind(*gpt2)
    editor.trained_batches += 1
    with torch.no_grad():
        editor.step_sizes.copy_(state["mend_state.edit_lrs"])
        for transform in editor.transforms:
            prefix = f"mend_state.mend.({transform.d_in}, {transform.d_out})."
            for block in range(2):
                layer = f"{prefix}mlp.layers.{block}."
                transform.down[block] = state[f"{layer}v"]
                transform.up[block] = state[f"{layer}u"]
                transform.bias[block] = state[f"{layer}bias"]
                transform.scale[block] = state[f"{layer}mode_scale.weight"]
                transform.shift[block] = state[f"{layer}mode_shift.weight"]
            for ours, theirs in (("input", "u"), ("gradient", "v")):
                getattr(transform.norm, f"{ours}_mean").copy_(state[f"{prefix}{theirs}_mean"])
                getattr(transform.norm, f"{ours}_squares").copy_(state[f"{prefix}{theirs}_s"])
            transform.norm.count.fill_(int(state[f"{prefix}k"]))
    return editor


def golden(mode: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    folder = shared_path(f"golden/EasyEdit-MEND/tiny-gpt2/{mode}")
    names = json.loads((folder / "meta.json").read_text())["hparams"]["inner_params"]
    return load_file(folder / "tensors.safetensors"), [n.removesuffix(".weight") for n in names]


def test_golden_single_edit(gpt2: tuple[Any, Any]) -> None:
    state, modules = golden("single")
    editor = golden_mend(gpt2, state, modules)
    delta = editor.edit(encode_batch(gpt2[1], golden_requests(1)))
    assert list(delta.weights) == [f"{module}.weight" for module in modules]
    for name, update in delta.weights.items():
        assert distance(update.right, state[f"factor.{name}.u"]) < 1e-5
        # Conv1D stores (d_in, d_out); a delta is (d_out, d_in).
        assert distance(update.dense(torch.float32), state[f"delta.{name}"].mT) < 1e-5


def test_golden_ten_edits(gpt2: tuple[Any, Any]) -> None:
    """The network on the tokens that EasyEdit really fed it for ten edits.

    EasyEdit pads the *targets* to equal length on the left with id 0 and takes that id for a wanted
    token; it also pads prompts on the left without position ids. Our own batches do neither, so the
    reference's batch is rebuilt here: the tokens are its own, the arithmetic is ours.
    """
    state, modules = golden("ten")
    model, tokenizer = gpt2
    editor = golden_mend(gpt2, state, modules)
    batch = encode_batch(tokenizer, golden_requests(10))
    lines = [[*encoded.prompt_ids, *encoded.target_ids] for encoded in batch.encoded]
    width = max(map(len, lines))
    ids = torch.tensor([[0] * (width - len(line)) + line for line in lines])
    mask = torch.tensor([[0] * (width - len(line)) + [1] * len(line) for line in lines])
    labels = torch.full_like(ids, -100)
    for row, encoded in enumerate(batch.encoded):
        labels[row, -2:] = torch.tensor([0, *encoded.target_ids][-2:])
    with capture(model, dict.fromkeys(modules, "both")) as seen:
        logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:])
    gradients = torch.autograd.grad(loss, [seen[f"{module}@output"] for module in modules])
    for index, (module, gradient) in enumerate(zip(modules, gradients, strict=True)):
        group, layer = editor._transform_slots[index]
        inputs = seen[f"{module}@input"].detach()
        keep = informative_rows(inputs, gradient)
        with torch.no_grad():
            u, v = editor.transforms[group](inputs[keep], gradient[keep], layer)
        assert distance(v, state[f"factor.{module}.weight.v"]) < 1e-5
        update = editor.step_sizes[index].detach() * u.mT @ v
        assert distance(update, state[f"delta.{module}.weight"]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_edit_is_pure_and_a_tiny_step_up_the_gradient(
    gpt2: tuple[Any, Any], dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = copy.deepcopy(gpt2[0]).to(dtype)
    before = weights_hash(model)
    editor = MEND(rank=4)
    editor.bind(model, gpt2[1])
    batch = encode_batch(gpt2[1], golden_requests(2))
    with caplog.at_level(logging.WARNING):
        delta = editor.edit(batch)
    assert "is not trained" in caplog.text
    assert weights_hash(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert int(editor.transforms[0].norm.count) == 0
    again = editor.edit(batch)
    _, factors = token_factors(model, [(e.prompt_ids, e.target_ids) for e in batch.encoded], LAST)
    inputs, gradients = (part.flatten(0, 1) for part in factors[LAST[0]])
    name = f"{LAST[0]}.weight"
    assert torch.equal(delta.weights[name].left, again.weights[name].left)
    wanted = 1e-4 * gradients.float().mT @ inputs.float()
    torch.testing.assert_close(delta.weights[name].dense(torch.float32), wanted)


def test_default_layers_are_the_last_three_or_the_last_half() -> None:
    assert MEND.default_layers(48) == [45, 46, 47]
    assert MEND.default_layers(4) == [2, 3]
    assert MEND.default_layers(1) == [0]


def test_one_network_serves_all_weights_of_a_shape(gpt2: tuple[Any, Any]) -> None:
    editor = MEND(rank=2)
    editor.bind(*gpt2)
    assert len(editor.transforms) == 2
    assert editor._transform_slots == ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2))
    assert isinstance(editor.transforms[0], GradientTransform)
    groups = editor.configure_optimizers().param_groups  # type: ignore[union-attr]
    assert [group["lr"] for group in groups] == [1e-6, 1e-4]
