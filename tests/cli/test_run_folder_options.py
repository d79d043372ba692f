"""Loggers, checkpoints and evaluation on the command line go to, and come from, one folder."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lightning_edit.__main__ import main
from lightning_edit.cli.run_folder_options import find_checkpoint, name_save_dir, place_in_run
from lightning_edit.exceptions import CheckpointError, ConfigError

DATA = ["--data", "AtlasDataModule", "--data.limit", "2"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


class Config(SimpleNamespace):
    """A class in a configuration, as the parser gives it."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


@pytest.mark.parametrize(
    "words", [["--trainer.logger", "CSVLogger"], ["--trainer.logger+=my.CSVLogger"]]
)
def test_a_logger_needs_no_folder(words: list[str]) -> None:
    assert name_save_dir(["edit", *words]) == ["edit", *words, "--trainer.logger.save_dir=RUN"]
    given = ["edit", *words, "--trainer.logger.save_dir", "mine"]
    assert name_save_dir(given) == given
    assert name_save_dir(["edit", "--trainer.logger", "true"])[-1] == "true"


def test_what_has_no_folder_goes_with_the_run() -> None:
    path = "lightning.pytorch.callbacks.ModelCheckpoint"
    mine, free = {"dirpath": "mine"}, {"dirpath": None}
    log = Config(class_path="x.CSVLogger", init_args={"save_dir": "RUN"})
    kept = [Config(class_path=path, init_args=mine), Config(class_path=path, init_args=free)]
    place_in_run(SimpleNamespace(logger=log, callbacks=kept), "runs/x")
    assert log.init_args == {"save_dir": "runs/x"}
    assert (mine["dirpath"], free["dirpath"]) == ("mine", str(Path("runs/x/checkpoints")))


def test_the_best_checkpoint_is_found_by_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(ConfigError, match=r"--ckpt_path best: .* give the folder of the training"):
        find_checkpoint(tmp_path, "best")
    folder.mkdir()
    state = {"callbacks": {"ModelCheckpoint{}": {"best_model_path": "/gone/step=4.ckpt"}}}
    torch.save(state, folder / "last.ckpt")
    torch.save({}, folder / "step=4.ckpt")
    assert find_checkpoint(tmp_path, "last") == str(folder / "last.ckpt")
    assert find_checkpoint(tmp_path, "best") == str(folder / "step=4.ckpt")
    (folder / "last.ckpt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="give --ckpt_path the path of another"):
        find_checkpoint(tmp_path, "best")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_verbs_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    edit = ["edit", "--model", "FTL", *DATA, *QUIET, "--modes", "[tf]", "--run", "e"]
    assert main([*edit, "--trainer.logger", "CSVLogger"]) == 0
    assert yaml.safe_load(Path("e/config.yaml").read_text())["run"] == "e"
    (log,) = Path("e").rglob("metrics.csv")
    with log.open() as file:
        logged = {int(row["step"]): row for row in csv.DictReader(file)}
    points = json.loads(Path("e/results.json").read_text())["points"]
    assert sorted(logged) == [point["after"] for point in points]
    assert main(["resume", "e"]) == 0

    mend = ["--model", "MEND", "--model.rank", "4", *DATA, *QUIET, "--run", "m"]
    best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
    few = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    assert main(["fit", *mend, *few, *best, "--trainer.callbacks.save_last=true"]) == 0
    settings = Path("m/config.yaml").read_bytes()
    assert main(["test", *mend, "--ckpt_path", "best"]) == 0
    assert "test/reliability/em@tf" in capsys.readouterr().out
    assert Path("m/config.yaml").read_bytes() == settings

    assert main(["test", "--model", "FTL", *DATA, *QUIET, "--run", "t"]) == 0
    assert "reliability/em@gen" in capsys.readouterr().out
    assert main(["predict", "--model", "FTL", *DATA, *QUIET, "--run", "p"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["answer"] for row in rows][:1] == ["Palikir."]
    assert main(["test", "--model", "FTL", *DATA, *QUIET, "--ckpt_path", "best"]) == 2
    assert "has no checkpoint of a training" in capsys.readouterr().err
    assert not Path("lightning_logs").exists()
