"""The recipes of trained editors for the atlas: they train, go on, and their editors edit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_edit import editors
from lightning_edit.cli.lightning import main
from lightning_edit.models.loading import load_language_model
from tests.conftest import ROOT

#: Recipes of editors; that of a language model keeps every epoch and has no validation.
TRAIN = [
    path
    for path in sorted((ROOT / "configs/train").glob("*.yaml"))
    if path.stem != "planted_facts_atlas"
]
RECIPES = {
    "malmen_atlas": ("MALMEN", ["--protocol", "single"]),
    "malmen_batch_atlas": ("MALMEN", ["--protocol", "batch"]),
    "mend_batch_atlas": ("MEND", ["--protocol", "batch"]),
    "rledit_atlas": ("RLEdit", ["--protocol", "sequential", "--batch_size", "2"]),
}
#: Those of the embedded encoder-decoder.
TWO_STACKS = {
    "mend_atlas_t5": ("MEND", ["--lm", "atlas-t5", "--protocol", "single"]),
    "ke_atlas_t5": ("KE", ["--lm", "atlas-t5", "--protocol", "single"]),
    "serac_atlas_t5": ("SERAC", ["--lm", "atlas-t5", "--protocol", "sequential"]),
}


@pytest.mark.parametrize("name", [*RECIPES, "malmen_zsre", "malmen_counterfact"])
def test_recipes_stop_and_save_by_the_loss_of_validation(name: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/train/{name}.yaml").read_text())
    best, last, *stops = (callback["init_args"] for callback in config["trainer"]["callbacks+"])
    assert "monitor" not in last
    for arguments in (best, *stops):
        assert (arguments["monitor"], arguments["mode"]) == ("val/loss", "min")
    assert config["run"] == f"runs/{name.replace('_', '-')}"


class Worsening(LightningModule):
    """A module whose validation is best in its first epoch, by a loss or by a score."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.square()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", float(self.current_epoch))
        self.log("val/reliability/em@tf", -float(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")  # of small loaders
@pytest.mark.parametrize("path", TRAIN, ids=lambda p: p.stem)
def test_recipe_goes_on_from_the_last_validation_and_not_from_the_best(
    path: Path, tmp_path: Path
) -> None:
    listed = yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    saving: list[Any] = [
        ModelCheckpoint(dirpath=tmp_path, **callback["init_args"])
        for callback in listed
        if callback["class_path"].endswith("ModelCheckpoint")
    ]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    quiet["enable_model_summary"] = False
    rows = DataLoader(range(2))  # type: ignore[arg-type]
    trainer = Trainer(accelerator="cpu", max_epochs=3, callbacks=saving, **quiet)
    trainer.fit(Worsening(), rows, rows)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    steps = {n: torch.load(tmp_path / f"{n}.ckpt")["global_step"] for n in ("best", "last")}
    assert steps == {"best": 2, "last": 6}


def test_recipes_of_two_stacks_fit_the_model_and_edit_both() -> None:
    model, tokenizer = load_language_model("atlas-t5")
    for name, (kind, _) in TWO_STACKS.items():
        config = yaml.safe_load((ROOT / f"configs/train/{name}.yaml").read_text())
        assert (config["lm"], config["run"]) == ("atlas-t5", f"runs/{name.replace('_', '-')}")
        editor: Any = getattr(editors, kind)(**config["model"]["init_args"]).bind(model, tokenizer)
        if kind == "SERAC":
            stacks = editor.other.get_encoder(), editor.other.get_decoder()
            assert [len(stack.block) for stack in stacks] == [3, 3]
        else:
            edited = {name.partition(".")[0] for name in editor.edited_modules()}
            assert edited == {"encoder", "decoder"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Lightning's command line warns of is not tested here
@pytest.mark.parametrize("name", [*RECIPES, *TWO_STACKS])
def test_recipe_trains_goes_on_and_edits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, protocol = (RECIPES | TWO_STACKS)[name]
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
