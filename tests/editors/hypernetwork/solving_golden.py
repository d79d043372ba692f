"""What the golden tests of MALMEN and RLEdit share: the authors' tensors in our terms."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_edit.editors.hypernetwork.meta_batch import MetaBatch
from lightning_edit.editors.hypernetwork.solving import SolvingHypernetwork
from lightning_edit.functional.value_network import ValueNetwork
from lightning_edit.inference.answer_rows import AnswerRow
from lightning_edit.types import EditBatch, EditRequest, Encoded
from tests.conftest import shared_path

EMBEDDINGS = {
    "scale.weight": "scale",
    "shift.weight": "shift",
}


def golden(folder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of a set, or skip."""
    path = shared_path(f"golden/{folder}")
    meta = json.loads((path / "meta.json").read_text())
    return load_file(path / "tensors.safetensors"), meta


def language_model(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a small model of the shared material, or skip."""
    path: Path = shared_path(f"golden/models/{name}")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(path)


def rows(tensors: dict[str, Tensor], step: int, kind: str) -> list[AnswerRow]:
    """Return the rows of a step as prompts and answers, from the authors' padded batches."""
    found: list[AnswerRow] = []
    number = 0
    while (name := f"tokens.step{step}.{kind}.{number}") + ".labels" in tensors:
        ids, labels = tensors[f"{name}.input_ids"], tensors[f"{name}.labels"]
        for line, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
            scored = [place for place, label in enumerate(wanted) if label != -100]
            answer = tuple(wanted[place] for place in scored)
            found.append((tuple(line[: scored[0] + 1]), answer))
        number += 1
    assert found
    return found


def examples(tensors: dict[str, Tensor], step: int) -> MetaBatch:
    """Return a step's batch: edits, equivalent and unrelated tuples."""
    edits = rows(tensors, step, "edit_tuples")
    requests = tuple(EditRequest(f"e{n}", "prompt", "answer") for n in range(len(edits)))
    encoded = tuple(Encoded(tuple(p), tuple(a), None) for p, a in edits)
    outer = enumerate(rows(tensors, step, "equiv_tuples"))
    locality = enumerate(rows(tensors, step, "unrel_tuples"))
    return MetaBatch(EditBatch(requests, encoded), tuple(outer), tuple(locality))


def joined(parts: list[MetaBatch]) -> MetaBatch:
    """Return the batches of several steps as one."""
    inner = EditBatch(
        tuple(
            EditRequest(f"e{n}", "prompt", "answer")
            for n in range(sum(len(part.inner) for part in parts))
        ),
        tuple(encoded for part in parts for encoded in part.inner.encoded),
    )
    starts = [sum(len(part.inner) for part in parts[:n]) for n in range(len(parts))]
    pairs = list(zip(starts, parts, strict=True))
    outer = tuple((start + edit, row) for start, part in pairs for edit, row in part.outer)
    local = tuple((start + edit, row) for start, part in pairs for edit, row in part.locality)
    return MetaBatch(inner, outer, local)


def authors_view(network: ValueNetwork, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values of a network's parameters under the authors' names and in their shapes."""
    found = {
        "lr.weight": values["step_sizes"][:, None],
        "lamda.weight": values["log_ridges"][:, None],
    }
    for block in range(network.up.shape[0]):
        found[f"blocks.{block}.A"] = values["down"][block].mT
        found[f"blocks.{block}.B"] = values["up"][block].mT
        found[f"blocks.{block}.bias"] = values["bias"][block]
        for theirs, ours in EMBEDDINGS.items():
            found[f"blocks.{block}.{theirs}"] = values[ours][block]
    return found


def group(network: ValueNetwork) -> str:
    """Return the authors' name of a network."""
    return f"({network.d_in}, {network.d_out})"


def load(network: ValueNetwork, tensors: dict[str, Tensor], when: str) -> None:
    """Set a network's parameters to the authors'."""
    with torch.no_grad():
        own = dict(network.named_parameters())
        for name, view in authors_view(network, own).items():
            view.copy_(tensors[f"{when}.{group(network)}.{name}"])


def networks(editor: SolvingHypernetwork) -> list[ValueNetwork]:
    """Return the editor's networks."""
    return [net for net in editor.networks if isinstance(net, ValueNetwork)]


def gradients(editor: SolvingHypernetwork, found: list[Tensor]) -> dict[str, Tensor]:
    """Return gradients of all parameters under the authors' names."""
    named = dict(zip([name for name, _ in editor.named_parameters()], found, strict=True))
    result = {}
    for number, network in enumerate(networks(editor)):
        prefix = f"networks.{number}."
        own = {n.removeprefix(prefix): g for n, g in named.items() if n.startswith(prefix)}
        for name, value in authors_view(network, own).items():
            result[f"{group(network)}.{name}"] = value
    return result


def change(
    editor: SolvingHypernetwork, tensors: dict[str, Tensor], before: str, after: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each parameter's change, ours and the authors'."""
    found = {}
    for network in networks(editor):
        own = authors_view(network, dict(network.named_parameters()))
        for name, value in own.items():
            key = f"{group(network)}.{name}"
            start = tensors[f"{before}.{key}"]
            found[key] = (value.detach() - start, tensors[f"{after}.{key}"] - start)
    return found


def distance(got: Tensor, wanted: Tensor) -> float:
    """Relative distance of two tensors; absolute for zeros."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))
