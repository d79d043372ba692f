"""Snapshots of a model: what an edit must leave as it is, bit for bit."""

from typing import Any

import torch
from torch import nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything that an edit must leave on a model as it is."""
    return {
        "modules": [(name, id(one), type(one)) for name, one in model.named_modules()],
        "attributes": {name: attributes(one) for name, one in model.named_modules()},
        "training": [one.training for one in model.modules()],
        "parameters": {
            name: (id(one), one.requires_grad, one.grad is None, one.detach().clone())
            for name, one in model.named_parameters()
        },
        "state": {name: one.clone() for name, one in model.state_dict().items()},
    }


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return the names in a module's dictionary, and the hooks that are on it."""
    kept = {key: value for key, value in vars(module).items() if key != "_lightning_edit_lock"}
    hooks = {key: len(value) for key, value in kept.items() if key.endswith("_hooks")}
    return {"names": sorted(kept), "hooks": hooks}


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Check that a model is what it was when the snapshot was taken, bit for bit."""
    now = snapshot(model)
    for key in ("modules", "attributes", "training"):
        assert now[key] == before[key], key
    assert list(now["state"]) == list(before["state"])
    for name, value in now["state"].items():
        assert torch.equal(value, before["state"][name]), name
    assert now["parameters"].keys() == before["parameters"].keys()
    for name, (own, grads, empty, value) in now["parameters"].items():
        was, grad, clean, bits = before["parameters"][name]
        assert (own, grads, empty) == (was, grad, clean), name
        assert torch.equal(value, bits), name
