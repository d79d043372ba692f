"""MELO against the authors' own classes: the index of a stream, and the arithmetic of blocks."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_edit.editors.memory.block_lora import block_update
from lightning_edit.editors.memory.neuron_index import NeuronIndex
from tests.conftest import shared_path

DECISIONS = ["first", "far", "same", "conflict"]


def stored(name: str) -> dict[str, torch.Tensor]:
    return load_file(shared_path(f"golden/MELO/{name}") / "tensors.safetensors")


@pytest.mark.parametrize("size", [1, 5])
def test_the_index_takes_every_decision_of_the_published_code(size: int) -> None:
    found = stored(f"stream-batch{size}")
    index = NeuronIndex(sum_labels=True)
    labels = [tuple(one for one in row.tolist() if one >= 0) for row in found["labels"]]
    for step, start in enumerate(range(0, len(labels), size)):
        keys = found["stream"][start : start + size]
        if start:
            near, far = index.nearest(keys)
            assert near == found["nearest_before"][start : start + size].tolist()
            close(torch.tensor(far), found["distance_before"][start : start + size])
        decided = index.insert(keys, labels[start : start + size], 0.6)
        assert [DECISIONS.index(one) for one in decided] == found["decision"][
            start : start + size
        ].tolist()
        same_clusters(index, found, step)
        assert index.look_up(found["queries"]) == found["query_block"][step].tolist()
        near, far = index.nearest(found["queries"])
        assert near == found["query_nearest"][step].tolist()
        close(torch.tensor(far), found["query_distance"][step])
    if "forget_keys" in found:
        close(torch.stack(index.forgotten), found["forget_keys"])


def same_clusters(index: NeuronIndex, found: dict[str, torch.Tensor], step: int) -> None:
    count = int(found["n_clusters"][step])
    assert len(index.clusters) == count
    assert index.conflicts == int(found["conflict_num"][step])
    assert len(index.forgotten) == int(found["n_forget_keys"][step])
    for number, cluster in enumerate(index.clusters):
        close(cluster.centre, found["center"][step, number])
        assert cluster.radius == pytest.approx(float(found["radius"][step, number]), abs=1e-5)
        assert sum(cluster.label) == int(found["label_sum"][step, number])
        members = int(found["n_points"][step, number])
        assert cluster.blocks == found["point_block"][step, number, :members].tolist()
        close(torch.stack(cluster.keys), found["point_key"][step, number, :members])


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs.to(ours), rtol=0, atol=1e-5)


def test_blocks_give_the_outputs_and_gradients_of_the_published_code() -> None:
    found = stored("lora_blocks")
    down, up = (found[f"lora_{part}"].clone().requires_grad_() for part in "AB")
    rank, blocks = 2, found["block"].tolist()
    lines = []
    for row, block in zip(found["x"], blocks, strict=True):
        own = row @ found["W"].mT + found["bias"]
        if block >= 0:
            part = slice(block * rank, (block + 1) * rank)
            own = own + block_update(row, down.mT[part], up.mT[:, part], 8 / rank)
        lines.append(own)
    output = torch.stack(lines)
    torch.testing.assert_close(output, found["y"], rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(output.square().sum(), (down, up))
    for part, gradient in zip("AB", gradients, strict=True):
        torch.testing.assert_close(gradient, found[f"grad.lora_{part}"], rtol=1e-5, atol=1e-5)
    assert -100 in blocks
