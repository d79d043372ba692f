"""Outputs of the authors' own code on tiny models: how to read them (see the material's README)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_edit.edits.encoding import encode_batch
from lightning_edit.models.view import resolve
from lightning_edit.statistics.moments import Moments
from lightning_edit.types import EditBatch, EditRequest
from tests.conftest import shared_path

#: Most that two float32 runs of a hundred edits may be apart: the published code's own is 1.1e-5
#: from its float64 run, and ours 0.9e-5 from that.
HUNDRED = 2.1e-5


@dataclass(frozen=True)
class Golden:
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    model_name: str

    @property
    def templates(self) -> list[str]:
        flat = []
        for item in self.meta["context_templates"]:
            flat += [item] if isinstance(item, str) else item
        return flat

    @property
    def requests(self) -> list[EditRequest]:
        listed = self.meta.get("requests_full") or self.meta["requests"]
        return [
            EditRequest(
                id=str(record["case_id"]),
                prompt=record["prompt"].format(record["subject"]),
                target=record["target_new"]["str"],
                subject=record["subject"],
            )
            for record in listed
        ]


def golden(path: str) -> Golden:
    folder = shared_path(f"golden/{path}")
    meta = json.loads((folder / "meta.json").read_text())
    return Golden(load_file(folder / "tensors.safetensors"), meta, path.split("/")[1])


@cache
def tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(shared_path(f"golden/models/{name}"))


def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    folder = shared_path(f"golden/models/{name}")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return loaded.requires_grad_(False)


def batch(example: Golden) -> EditBatch:
    return encode_batch(tokenizer(example.model_name), example.requests)


def statistics(name: str, bound: Any, folder: Path) -> str:
    """Write the stored covariance in this library's format and return the path."""
    stored = load_file(shared_path(f"golden/covariance/{name}") / "tensors.safetensors")
    view = resolve(bound)
    matrices = {
        view.down_projection(int(key.rpartition(".")[2])): value for key, value in stored.items()
    }
    path = folder / "moments.safetensors"
    Moments(matrices, 100_005, "golden", "golden").save(path)
    return str(path)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
