"""What the tests of MEND share: a model that knows facts, requests about them, quiet trainers."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_edit.datamodules.loader import as_list
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.types import EditRequest, Probe
from tests.conftest import shared_path


def golden_requests(count: int, start: int = 0) -> list[EditRequest]:
    records = json.loads((shared_path("golden/requests") / "requests.json").read_text())
    return [
        EditRequest(
            str(r["case_id"]),
            r["prompt"].format(r["subject"]),
            r["target_new"]["str"],
            r["subject"],
            r["target_true"]["str"],
            tuple(r["paraphrase_prompts"]),
            tuple(Probe.of("neighborhood", n["prompt"], n["object"]) for n in r["neighborhood"]),
        )
        for r in records[start : start + count]
    ]


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


LAST = ["transformer.h.5.mlp.c_proj"]


def loader(start: int, count: int, batch_size: int = 1) -> DataLoader[Any]:
    requests = golden_requests(count, start)
    return DataLoader(requests, batch_size=batch_size, collate_fn=as_list)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**quiet | options)


def small(**options: Any) -> MEND:
    return MEND(**{"rank": 8, "lr": 1e-3, "step_size": 1e-2, "step_size_lr": 1e-2} | options)
