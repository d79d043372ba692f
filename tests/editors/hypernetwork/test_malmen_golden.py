"""MALMEN: the authors' numbers, from single tensors to two training steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_edit.editors.hypernetwork.malmen import MALMEN
from lightning_edit.functional.ridge_update import RidgeUpdate
from lightning_edit.functional.value_network import ValueNetwork
from tests.editors.hypernetwork.solving_golden import (
    change,
    distance,
    examples,
    golden,
    gradients,
    language_model,
    load,
    networks,
)

ONE, TWO = "m0", "m1"
TOLERANCE = {
    "float64": {"plain": 1e-8, "S": 1e-8, "hyper": 1e-8},
    "float32": {"plain": 1e-4, "S": 1e-3, "hyper": 2e-3},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("start", ["init", "random"])
def test_toy(start: str, dtype: str) -> None:
    tensors, _ = golden(f"MALMEN/toy-{start}-{dtype}")
    allowed = TOLERANCE[dtype]
    network = ValueNetwork(12, 8, 2, 6, 2, variance="as_code").to(getattr(torch, dtype))
    load(network, tensors, "hyper_before")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in (1, 2):

        def get(name: str, module: str, step: int = step) -> Tensor:
            return tensors[f"step{step}.{name}.{module}"]

        for first in range(0, 20, 5):
            for module in (ONE, TWO):
                rows = slice(first, first + 5)
                network.update_norm(get("keys", module)[rows], get("values_grad", module)[rows])
        assert distance(network.norm.mean, tensors[f"step{step}.normalizer.mean"]) < 1e-6
        assert distance(network.norm.squares, tensors[f"step{step}.normalizer.var"]) < 1e-6
        optimiser.zero_grad()
        for layer, module in enumerate((ONE, TWO)):
            keys, values = get("keys", module), get("values_grad", module)
            for got, name in zip(
                network.pseudo(keys, values, layer), ("pseudo_keys", "pseudo_grads"), strict=True
            ):
                assert distance(got.detach(), get(name, module)) < allowed["plain"]
            shifts = network(keys, values, layer)
            assert distance(shifts.detach(), get("D", module)) < allowed["plain"]
            ridge = float(network.log_ridges[layer].detach())
            update = RidgeUpdate.solve(keys, get("D", module), ridge)
            assert distance(update.dense().mT, get("S", module)) < allowed["S"]
            by_shifts = update.gradient_of_shifts(get("Gamma", module).mT)
            assert distance(by_shifts, get("dL_dD", module)) < allowed["plain"] * 10
            by_ridge = update.gradient_of_log_ridge(get("dL_dD", module))
            assert distance(by_ridge, get("dL_dlambda", module).squeeze()) < allowed["hyper"]
            shifts.backward(get("dL_dD", module))
            if network.log_ridges.grad is None:
                network.log_ridges.grad = torch.zeros_like(network.log_ridges)
            network.log_ridges.grad[layer] += get("dL_dlambda", module).squeeze()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        assert distance(norm, tensors[f"step{step}.grad_norm"].squeeze()) < allowed["hyper"]
        optimiser.step()
        for name in ("lr.weight", "lamda.weight", "blocks.0.B", "blocks.1.bias"):
            after = tensors[f"hyper_after_step{step}.(12, 8).{name}"]
            ours = {
                "lr.weight": network.step_sizes[:, None],
                "lamda.weight": network.log_ridges[:, None],
                "blocks.0.B": network.up[0].mT,
                "blocks.1.bias": network.bias[1],
            }[name]
            assert distance(ours.detach(), after) < 10 * allowed["hyper"], name


@pytest.mark.parametrize("start", ["init", "random"])
def test_two_training_steps_and_a_validation_edit(start: str) -> None:
    tensors, meta = golden(f"MALMEN/tiny-gpt2/ten-{start}-float64")
    settings: dict[str, Any] = meta["settings"]
    model = language_model("tiny-gpt2", torch.float64)
    editor = MALMEN(
        rank=settings["rank"],
        num_blocks=settings["n_blocks"],
        modules=settings["edit_modules"],
        loss_over="mini_batch",
        mini_batch=settings["data_batch"],
        tokens_per_pass=settings["batch_size"],
        variance="as_code",
        reduction="sum",
        lr=settings["meta_lr"],
        c_loc=settings["loc_coef"],
    )
    editor.bind(*model)
    editor.double()
    for network in networks(editor):
        load(network, tensors, "hyper_before")
    optimiser = editor.configure_optimizers()
    assert isinstance(optimiser, torch.optim.Adam)
    before = "hyper_before"
    for step in range(1, settings["steps"] + 1):
        batch = examples(tensors, step)
        tokens = editor.read(batch.inner)
        for module in settings["edit_modules"]:
            keys, values = tokens.factors[module]
            assert distance(keys, tensors[f"step{step}.keys.{module}"]) < 1e-8
            assert distance(values, tensors[f"step{step}.values_grad.{module}"]) < 1e-8
        terms, found = editor.step_gradients(batch)
        (network,) = networks(editor)
        name = f"step{step}.normalizer.({network.d_in}, {network.d_out})"
        assert distance(network.norm.squares, tensors[f"{name}.var"]) < 1e-8
        solved = editor.solve(tokens, None)
        for module in settings["edit_modules"]:
            (update,) = solved[f"{module}.weight"]
            assert distance(update.shifts, tensors[f"step{step}.D.{module}"]) < 1e-8
            assert distance(update.dense().mT, tensors[f"step{step}.S.{module}"]) < 1e-8
        batches = settings["n_edits"] / settings["data_batch"]
        logged = meta["train_log"][step - 1]
        assert float(terms["edit_nll"]) / batches == pytest.approx(logged["gen_loss"], rel=1e-7)
        assert float(terms["locality_kl"]) / batches == pytest.approx(logged["loc_loss"], rel=1e-6)
        for key, gradient in gradients(editor, found).items():
            wanted = tensors[f"step{step}.hypergrad_before_clip.{key}"]
            assert distance(gradient, wanted) < 1e-8, key
        for parameter, gradient in zip(editor.parameters(), found, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(editor.parameters(), settings["max_grad_norm"])
        assert distance(norm, tensors[f"step{step}.grad_norm"].squeeze()) < 1e-8
        optimiser.step()
        after = f"hyper_after_step{step}"
        for key, (ours, theirs) in change(editor, tensors, before, after).items():
            assert distance(ours, theirs) < 1e-6, key
        before = after
    batch = examples(tensors, settings["steps"] + 1)
    tokens = editor.read(batch.inner)
    editor.update_norms(tokens)  # the authors' statistics go on in validation
    for module in settings["edit_modules"]:
        (update,) = editor.solve(tokens, None)[f"{module}.weight"]
        assert distance(update.dense().mT, tensors[f"valid1.S.{module}"]) < 1e-8
