"""Callbacks in anyone's Trainer: two processes give the numbers of one; half precision; resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_edit.callbacks import (
    CollapseCallback,
    DriftCallback,
    EfficiencyCallback,
    MeasurementCallback,
    OverfittingCallback,
)
from lightning_edit.storage.jsonl import read_rows
from tests.callbacks.foreign import FineTuning, loader, trainer
from tests.callbacks.test_evaluation import REQUESTS
from tests.forks import Forks

# Three texts and one request on two processes: uneven shares, and an empty one.
TEXTS = ["The capital of Italy is Rome", "Lyon lies in France", "The river is in Rome"]

pytestmark = [
    pytest.mark.bits,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]


def callbacks(root: Path) -> list[MeasurementCallback]:
    options: dict[str, Any] = {"every_n_steps": 2}
    return [
        DriftCallback(TEXTS, directory=str(root / "drift"), **options),
        CollapseCallback(
            TEXTS, generations=3, max_new_tokens=5, directory=str(root / "collapse"), **options
        ),
        OverfittingCallback(REQUESTS, directory=str(root / "overfitting"), **options),
        EfficiencyCallback(**options),
    ]


def measured(run: Any) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in run.callback_metrics.items()
        if "/" in name and not name.endswith("_bytes")
    }


@pytest.mark.slow
def test_resumed_and_uninterrupted_trainings_agree(tmp_path: Path) -> None:
    half = trainer(tmp_path, *callbacks(tmp_path / "half"), max_epochs=2)
    half.fit(FineTuning(), loader(), loader(1))
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainer(tmp_path, *callbacks(tmp_path / "half"))
    resumed.fit(FineTuning(), loader(), loader(1), ckpt_path=tmp_path / "half.ckpt")
    whole = trainer(tmp_path, *callbacks(tmp_path / "whole"))
    whole.fit(FineTuning(), loader(), loader(1))
    values = measured(whole)
    assert measured(resumed) == values
    assert values["drift/l2_growth"] != 1
    assert values["drift/hidden_l2"] > 0
    assert values["collapse/perplexity_ratio"] != 1
    # The training teaches "The capital of France is Lyon"; Lyon is no answer about Italy.
    assert 0 <= values["overfitting.subject_only/dp@tf"] <= 1
    assert len(values) > 15


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision(tmp_path: Path, precision: str) -> None:
    run = trainer(tmp_path, *callbacks(tmp_path), max_epochs=1, precision=precision)
    run.fit(FineTuning(lr=1e-4), loader(), loader(1))
    values = measured(run)
    assert len(values) > 15
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values())


def measure(root: str, devices: int) -> None:
    run = trainer(
        Path(root), *callbacks(Path(root)), max_epochs=1, devices=devices,
        strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(FineTuning(lr=1e-3), loader(), loader(1))
    Path(root, f"rank-{run.global_rank}.json").write_text(json.dumps(measured(run)))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, forks: Forks) -> None:
    found: dict[int, list[dict[str, float]]] = {}
    rows: dict[int, dict[str, list[str]]] = {}
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        forks.run(measure, root, devices, ranks=devices)
        found[devices] = [
            json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(devices)
        ]
        rows[devices] = {
            kind: sorted(map(_identity, read_rows(max((root / kind).glob("step-*.jsonl")))))
            for kind in ("collapse", "overfitting")
        }
    assert found[2][0] == found[2][1]
    assert found[2][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)
    assert rows[2] == rows[1]
    assert len(rows[1]["collapse"]) == 6  # three texts that were read, three that were written


def _identity(row: dict[str, Any]) -> str:
    """What a row is about, without its numbers."""
    return json.dumps([row.get(key) for key in ("step", "text", "prompt", "group", "generated")])
