"""The recipes of trained editors for the atlas: they train, go on, and their editors edit."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_edit.cli.lightning import main
from tests.conftest import ROOT

RECIPES = {
    "malmen_atlas": ("MALMEN", ["--protocol", "single"]),
    "malmen_batch_atlas": ("MALMEN", ["--protocol", "batch"]),
    "mend_batch_atlas": ("MEND", ["--protocol", "batch"]),
    "rledit_atlas": ("RLEdit", ["--protocol", "sequential", "--batch_size", "2"]),
}


@pytest.mark.parametrize("name", [*RECIPES, "malmen_zsre", "malmen_counterfact"])
def test_recipes_stop_and_save_by_the_loss_of_validation(name: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/train/{name}.yaml").read_text())
    for callback in config["trainer"]["callbacks+"]:
        arguments = callback["init_args"]
        assert (arguments["monitor"], arguments["mode"]) == ("val/loss", "min")
    assert config["run"] == f"runs/{name.replace('_', '-')}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Lightning's command line warns of is not tested here
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe_trains_goes_on_and_edits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, protocol = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    short += ["--trainer.val_check_interval", "1.0", "--trainer.check_val_every_n_epoch", "1"]
    short += ["--data.batch_size", "4", "--trainer.max_steps", "-1"]
    fit = ["fit", "--config", str(ROOT / f"configs/train/{name}.yaml"), *short]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    best = tmp_path / "runs" / name.replace("_", "-") / "checkpoints/best.ckpt"
    edit = ["edit", "--config", str(ROOT / f"configs/method/{editor}.yaml"), "--run", "run"]
    edit += ["--model.checkpoint", str(best), "--data", "AtlasDataModule", "--data.limit", "4"]
    assert main([*edit, *protocol]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["status"] == "complete"
    assert 0 <= results["points"][-1]["metrics"]["reliability/em@tf"] <= 1
    assert results["points"][-1]["metrics"]["reliability/nll@tf"] > 0
