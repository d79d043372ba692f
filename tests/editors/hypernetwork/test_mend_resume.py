"""Trained editors are resumed, stored and used; the recipe runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit.cli.lightning import main
from lightning_edit.datamodules.base import EditDataModule
from lightning_edit.datamodules.loader import EpochShuffle
from lightning_edit.editors.hypernetwork.mend import MEND
from lightning_edit.edits.encoding import encode_batch
from lightning_edit.exceptions import ArchitectureError, CheckpointError
from lightning_edit.types import EditRequest
from tests.conftest import ROOT
from tests.editors.hypernetwork.mending import golden_requests, loader, small, trainer
from tests.models.tiny import build_tiny

pytestmark = [
    pytest.mark.bits,
    # lightning 2.6.6 asks torch 2.13 in the old way whether a batch is a leaf.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # These runs have no validation, or resume in a folder that is not empty, on purpose.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


class Facts(EditDataModule):
    """Five facts; the training order is another one in every epoch."""

    def load_split(self, split: str) -> list[EditRequest]:
        return golden_requests(5) if split == "train" else []


def test_resumed_training_continues_identically(gpt2: tuple[Any, Any], tmp_path: Path) -> None:
    def fit(folder: Path, epochs: int, resume: bool) -> MEND:
        editor = small(decay_steps=20)
        editor.bind(*gpt2)
        saving = ModelCheckpoint(dirpath=folder, save_last=True)
        run = trainer(folder, max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
        run.fit(editor, datamodule=Facts(), ckpt_path="last" if resume else None)
        return editor

    whole = fit(tmp_path / "whole", 2, resume=False)
    fit(tmp_path / "parts", 1, resume=False)
    resumed = fit(tmp_path / "parts", 2, resume=True)
    assert int(resumed.trained_batches) == 10
    for editor in (whole, resumed):
        rates = [group["lr"] for group in editor.trainer.optimizers[0].param_groups]
        assert rates == pytest.approx([1e-3 / 2, 1e-2 / 2])
    order = EpochShuffle(5, seed=0)
    first = list(order)
    order.set_epoch(1)
    assert first != list(order)
    for (name, one), two in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    size = (tmp_path / "parts" / "last.ckpt").stat().st_size
    own = sum(value.numel() * value.element_size() for value in whole.state_dict().values())
    assert size < 3.5 * own  # parameters and Adam's two moments, and no language model


def test_trained_editor_is_stored_and_used(gpt2: tuple[Any, Any], tmp_path: Path) -> None:
    editor = small(layers=[4])
    editor.bind(*gpt2)
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    run = trainer(tmp_path, max_epochs=1, callbacks=[saving], enable_checkpointing=True)
    run.fit(editor, loader(0, 2))
    editor.save_weights(tmp_path / "mend.safetensors")
    batch = encode_batch(gpt2[1], golden_requests(1))
    wanted = editor.edit(batch)
    for file in ("last.ckpt", "mend.safetensors"):
        loaded = MEND(checkpoint=str(tmp_path / file))  # rank and layers come from the file
        loaded.bind(*gpt2)
        assert loaded.is_trained
        got = loaded.edit(batch)
        assert list(got.weights) == list(wanted.weights)
        for name, update in wanted.weights.items():
            assert torch.equal(got.weights[name].dense(), update.dense())
    loaded.bind(*gpt2)  # `edit_model` binds again: the trained network stays
    assert torch.equal(loaded.transforms[0].up, editor.transforms[0].up)
    with pytest.raises(ArchitectureError, match="bind it to the model it was trained on"):
        loaded.bind(build_tiny("gpt2", n_layer=6), gpt2[1])


def test_unusable_checkpoints_are_refused(gpt2: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    for name, message in {
        "absent.ckpt": "no such file",
        "text.ckpt": "is no checkpoint",
        "text.safetensors": "cannot be read",
        "other.ckpt": "expected a trained editor",
        "list.ckpt": "expected a checkpoint, got a list",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            MEND(checkpoint=str(tmp_path / name)).bind(*gpt2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Lightning's command line warns of is not tested here
def test_recipe_trains_goes_on_and_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((ROOT / "configs/train/mend_atlas.yaml").read_text())
    (stopping,) = (
        one["init_args"]
        for one in config["trainer"]["callbacks+"]
        if one["class_path"].endswith("EarlyStopping")
    )
    assert (stopping["monitor"], stopping["mode"]) == ("val/loss", "min")
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    fit = ["fit", "--config", str(ROOT / "configs/train/mend_atlas.yaml"), *short]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    best = tmp_path / "runs/mend-atlas/checkpoints/best.ckpt"
    edit = ["edit", "--config", str(ROOT / "configs/method/MEND.yaml"), "--run", "run"]
    edit += ["--model.checkpoint", str(best), "--data", "AtlasDataModule", "--data.limit", "2"]
    assert main([*edit, "--protocol", "single"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["status"] == "complete"
    assert results["points"][-1]["metrics"]["reliability/em@tf"] > 0
