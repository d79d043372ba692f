"""Somebody's whole project: own module, loggers, checkpoints, two processes; then an edit."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.forks import Forks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`"),
]

#: The project's own script. Arguments: folder, processes, epochs, checkpoint to go on from ("" for
#: none), whether to measure.
_PROJECT = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_edit import DriftCallback, EditEvaluation, EditRequest, Probe
from lightning_edit.models.weights import weights_hash
from tests.callbacks.foreign import FineTuning, loader

root, devices, epochs, ckpt, measure = sys.argv[1:6]
pl.seed_everything(3)
watch = EditRequest(
    "france", "The capital of France is", "Lyon", "France",
    probes=(Probe.of("neighborhood", "The capital of Italy is", "Rome"),),
)
best = ModelCheckpoint(
    root + "/checkpoints", "{epoch}", "reliability/em@tf", mode="max", save_last=True
)
own = [EditEvaluation(requests=[watch]), DriftCallback(["Lyon lies in France"]), best]
trainer = pl.Trainer(
    accelerator="cpu", devices=int(devices), strategy="ddp" if devices != "1" else "auto",
    max_epochs=int(epochs), enable_progress_bar=False, enable_model_summary=False,
    log_every_n_steps=1, default_root_dir=root, use_distributed_sampler=False,
    logger=[CSVLogger(root, "csv", version=0)],
    callbacks=[LearningRateMonitor("step"), *(own if measure == "yes" else [])],
)
module = FineTuning(lr=0.003)
trainer.fit(module, loader(), loader(1), ckpt_path=ckpt or None, weights_only=False)
scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.count("/") == 1}
found = {"hash": weights_hash(module.backbone), "scores": scores, "steps": trainer.global_step}
if measure == "yes":
    found |= {"best": float(best.best_model_score), "path": best.best_model_path}
    (again,) = trainer.validate(
        module, loader(1), ckpt_path="best", verbose=False, weights_only=False
    )
    found["validated"] = again["reliability/em@tf"]
Path(root, f"rank-{trainer.global_rank}.json").write_text(json.dumps(found))
"""


def run_script(*words: str) -> None:
    """Run a script with its arguments, as Python does."""
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


def train(
    forks: Forks,
    root: Path,
    devices: int = 1,
    epochs: int = 4,
    ckpt: str = "",
    measure: str = "yes",
) -> Any:
    root.mkdir(exist_ok=True)
    script = root / "project.py"
    script.write_text(_PROJECT)
    words = [str(script), str(root), str(devices), str(epochs), ckpt, measure]
    if devices == 1:
        forks.run(run_script, *words)
    else:  # Lightning's own launcher starts the second
        done = subprocess.run(
            [sys.executable, *words], check=False, timeout=400, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(devices)]
    assert all(rank == ranks[0] for rank in ranks)
    return ranks[0]


def logged(root: Path, name: str) -> list[tuple[int, float]]:
    with (root / "csv" / "version_0" / "metrics.csv").open() as file:
        return [
            (int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)
        ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("project") / "whole"
    return root, train(forks, root)


def test_measuring_changes_nothing_and_reaches_logger_and_checkpoint(
    whole: tuple[Path, Any], tmp_path: Path, forks: Forks
) -> None:
    root, measured = whole
    plain = train(forks, tmp_path / "plain", measure="no")
    assert (measured["hash"], measured["steps"]) == (plain["hash"], plain["steps"])
    rows = logged(root, "reliability/em@tf")
    steps = [step for step, _ in rows[: 1 + 4]]
    assert steps == sorted(set(steps))
    assert rows[0][1] == 0 < max(value for _, value in rows) == measured["best"]
    assert measured["validated"] == measured["best"]
    assert Path(measured["path"]).is_file()
    assert logged(root, "drift/l2_growth")[-1][1] != 1


def test_two_processes_and_a_resumed_training_say_the_same(
    whole: tuple[Path, Any], tmp_path: Path, forks: Forks
) -> None:
    _, measured = whole
    train(forks, tmp_path / "half", epochs=2)
    resumed = train(forks, tmp_path / "half", ckpt=str(tmp_path / "half/checkpoints/last.ckpt"))
    assert resumed["hash"] == measured["hash"]
    assert resumed["scores"] == measured["scores"]
    two = train(forks, tmp_path / "two", devices=2)
    assert two["scores"].keys() == measured["scores"].keys()
    assert two["best"] == measured["best"]


def test_the_trained_module_is_edited_and_trained_on(tmp_path: Path) -> None:
    from lightning_edit import FTM, EditRequest
    from lightning_edit.inference.responder import Question
    from lightning_edit.models.weights import weights_hash
    from tests.callbacks.foreign import FineTuning, loader, trainer

    module = FineTuning(lr=0.003)
    first = trainer(tmp_path)
    first.fit(module, loader(), loader(1))
    before = weights_hash(module.backbone)
    editor = FTM(steps=40, lr=1e-2)
    request = EditRequest("italy", "The capital of Italy is", "Arles", "Italy")
    edited = editor.edit_model(module.backbone, module.tokenizer, request)
    responder = editor.responder(edited.ledger.in_force)
    assert responder.generate_until([Question(request.prompt, 4)])[0].strip().startswith("Arles")
    edited.undo()
    assert weights_hash(module.backbone) == before
    edited.redo()
    assert weights_hash(module.backbone) != before
    # Its own training goes on, from the edited weights.
    module.requires_grad_(True)
    trainer(tmp_path).fit(module, loader(), loader(1))
    assert weights_hash(module.backbone) != before
